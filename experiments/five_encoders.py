"""Five encoders under the same protocols: untrained, three methods without labels, and one trained with labels; on four data sets.

    SMALLVIEW_DATA=... python experiments/five_encoders.py --out runs/five-encoders     # about 40 minutes on one core
    python experiments/five_encoders.py --miniature                                     # generated pictures; shows that it runs

CIFAR-10's first 10,000 training pictures, `dense_small` at 32 px, four epochs, two seeds of each. Judged by kNN, the linear probe, few
labels, and the linear probe under corruptions, on CIFAR-10; by the first three also on Fashion-MNIST (10,000 and 10,000), flowers (20 and 8
pictures of 89 classes) and clothing (64 and 12 of 10), which no encoder was trained on. Printed: the table of `smallview compare` as
Markdown, and the time taken. A call that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import smallview
from smallview.assess import train_supervised
from smallview.comparing import compare, markdown
from smallview.evaluation.features import recalibrate
from smallview.evaluation.subject import evaluation_pack, open_subject
from smallview.networks.encoders import build_encoder, load_encoder, save_encoder
from smallview.seeds import derive

METHODS = ("simclr", "byol", "moco_v2")
Pair = tuple[Any, Any]


def sets() -> tuple[Pair, dict[str, Pair]]:
    """CIFAR-10 and the three others, each as (train, test)."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from shared_pictures import reader

    load = reader()
    x, y, test_x, test_y = load.cifar10((1,))
    fx, fy, fashion_x, fashion_y = load.fashion_mnist()
    more = {
        "fashion-mnist": ((fx[:10_000], fy[:10_000]), (fashion_x, fashion_y)),
        "flowers": (load.flowers("train"), load.flowers("test")),
        "clothing": (load.clothing("train"), load.clothing("test")),
    }
    return ((x, y), (test_x, test_y)), more


def generated() -> tuple[Pair, dict[str, Pair]]:
    """Small made pictures for the miniature."""
    random = np.random.default_rng(0)
    y = np.arange(200) % 4
    x = np.clip(random.normal(60 + 40 * y[:, None, None, None], 50, (200, 12, 12, 3)), 0, 255).astype(np.uint8)
    gray = x[..., 0]
    return ((x[:140], y[:140]), (x[140:], y[140:])), {"gray": ((gray[:140], y[:140]), (gray[140:], y[140:]))}


def untrained(like: Path, pictures: Any, out: Path, seed: int) -> Path:
    """An encoder folder with the weights that a run with this seed starts from, BatchNorm statistics from the pictures."""
    _, config = load_encoder(like)
    net, _ = build_encoder(
        config.architecture, in_channels=config.in_channels, size=config.size, stem=config.stem, seed=derive(seed, "encoder")
    )
    _, pack = evaluation_pack(pictures, config)
    save_encoder(recalibrate(net, config, pack), config, out / "encoder")
    cost = {"flops": 0.0, "train_seconds": 0.0, "parameters": sum(p.numel() for p in net.parameters())}
    (out / "summary.json").write_text(json.dumps({"finished": True, "seed": seed, "method": "untrained", "cost": cost}) + "\n")
    return out


def main() -> None:
    """Train, judge, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--miniature", action="store_true")
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        small = given.miniature
        (train, test), transfer = generated() if small else sets()
        size, batch, seeds = (12, 32, 1) if small else (32, 256, given.seeds)
        options = {
            "epochs": 1.0 if small else given.epochs,
            "size": size,
            "batch_size": batch,
            "encoder": "dense_small",
            "quiet": True,
        }
        folders: list[Path] = []
        for method in METHODS:
            for seed in range(seeds):
                run = smallview.pretrain(train[0], method, out=out / f"{method}-{seed}", seed=seed, **options)
                folders.append(run.path)
        for seed in range(seeds):
            like = out / f"{METHODS[0]}-{seed}"
            labeled = out / f"supervised-{seed}"
            if not (labeled / "summary.json").exists():
                train_supervised(like, train, labeled)
            folders += [labeled, untrained(like, train[0], out / f"untrained-{seed}", seed)]
        for folder in folders:
            if not (folder / "rows.jsonl").exists():
                judge(folder, train, test, transfer, small)
        order = sorted(
            folders, key=lambda folder: (not folder.name.startswith(METHODS[0]), folder.name.rpartition("-")[0], folder.name)
        )
        print(markdown(compare(order)))
        print(f"{(time.monotonic() - started) / 60:.0f} minutes")


def judge(folder: Path, train: Pair, test: Pair, transfer: dict[str, Pair], small: bool) -> None:
    """All rows of one encoder, its floors beside it."""
    settings = {"lowshot.prototypes": "false", "robust.pictures": "40" if small else "300"}
    if small:
        settings |= {"lowshot.draws": "2", "robust.severities": "(3,)"}
    assert open_subject(folder).encoder is not None
    smallview.evaluate(folder, train, test, "knn,linear,lowshot", sets=settings, transfer=transfer)
    smallview.evaluate(folder, train, test, "robust", sets=settings, leaks=False)
    print(f"judged {folder.name}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
