"""Do clusters of what an encoder sees agree with classes that nobody told it? Beside raw pixels and the same encoder untrained.

    SMALLVIEW_DATA=... python experiments/cluster.py --out runs/cluster --minutes 2            # five sets, a training of each on its pictures
    SMALLVIEW_DATA=... python experiments/cluster.py --run runs/cifar10 --data clothing,flowers  # with an encoder that there is
    python experiments/cluster.py --miniature                                                # shows that it runs

Digits (1,797), the first 5,000 training pictures of CIFAR-10 and Fashion-MNIST, photographs of flowers and clothing. Rows are taken as
`cluster` takes them; k-means gets the true number of classes, and that which `auto` gives is told beside it. Printed: a JSON line for
each set and seed with NMI and accuracy under the best matching of clusters to classes, then a table of means. Labels decide nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import smallview
from smallview.clustering import EACH, MOST_K, TRIED
from smallview.evaluation.channels import ThreeChannels
from smallview.evaluation.clusters import choose_k, counted, evened, kmeans, matched_accuracy, nmi
from smallview.evaluation.features import extract, fresh_encoder, raw_pixels, recalibrate
from smallview.evaluation.subject import evaluation_pack, open_subject
from smallview.seeds import generator

MOST = 5_000
SETS = ("digits", "cifar10", "fashion_mnist", "flowers", "clothing")
Rows = npt.NDArray[np.float32]

RECIPE = {"method": "simclr", "encoder": "dense_small", "resolution": "Steps((0.5, 1.0), (0.7,))"}


def pictures(name: str) -> Any:
    """A set with its labels: (pictures, labels), or a folder of class folders."""
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return (digits.images * 15.9375).astype(np.uint8), digits.target
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from shared_pictures import reader

    load = reader()
    if name in ("flowers", "clothing"):
        return getattr(load, name)("train")
    x, y, *_ = load.cifar10((1,)) if name == "cifar10" else load.fashion_mnist()
    return x[:MOST], y[:MOST]


def generated() -> Any:
    """Small made pictures of three shades."""
    random = np.random.default_rng(0)
    y = np.arange(90) % 3
    return np.clip(random.normal(60 + 40 * y[:, None, None, None], 30, (90, 12, 12, 3)), 0, 255).astype(np.uint8), y


def measured(rows: Rows, labels: npt.NDArray[np.int64], seed: int) -> tuple[float, float]:
    """NMI and matched accuracy in percent of as many clusters as there are classes."""
    table = counted(kmeans(even(rows), len(np.unique(labels)), seed).assigned, labels)
    return round(100 * nmi(table), 1), round(100 * matched_accuracy(table), 1)


def even(rows: Rows) -> Rows:
    """As `cluster` takes them: rows of length 1, then evened."""
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return evened(rows)(rows)


def judged(run: Path, data: Any, seed: int, threads: int) -> dict[str, Any]:
    """The figures of one set: encoder, untrained encoder, raw pixels, and what auto gives."""
    subject = open_subject(run)
    config = subject.config
    _, pack = evaluation_pack(data, config, threads=threads)
    assert pack.labels is not None, "sets come with labels"
    shown = pack if pack.channels == config.in_channels else ThreeChannels(pack)
    features = extract(subject.encoder, config, shown, threads=threads).numpy()
    fresh = recalibrate(fresh_encoder(subject.encoder, config, seed), config, shown)
    rows = {
        "encoder": features,
        "untrained": extract(fresh, config, shown, threads=threads).numpy(),
        "pixels": raw_pixels(pack, config.size).numpy(),
    }
    told: dict[str, Any] = {"pictures": len(pack), "classes": len(np.unique(pack.labels))}
    for name, each in rows.items():
        told[f"nmi {name}"], told[f"accuracy {name}"] = measured(each, pack.labels, seed)
    seen = even(features)
    some = seen[np.sort(generator(seed, "cluster").permutation(len(pack))[:TRIED])]
    told["auto"], silhouettes = choose_k(some, min(MOST_K, max(2, len(some) // EACH)), seed)
    told["silhouette"] = round(silhouettes[told["auto"]], 3)
    table = counted(kmeans(seen, told["auto"], seed).assigned, pack.labels)
    told["nmi auto"] = round(100 * nmi(table), 1)
    return told


def table(lines: list[dict[str, Any]]) -> None:
    """Means over seeds, a row for each set."""
    print(
        "| set | classes | NMI: pixels | untrained | encoder | accuracy: pixels | untrained | encoder | auto gives | NMI there |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    names = [f"{what} {of}" for what in ("nmi", "accuracy") for of in ("pixels", "untrained", "encoder")]
    for data in dict.fromkeys(line["data"] for line in lines):
        of = [line for line in lines if line["data"] == data]
        means = " | ".join(f"{np.mean([line[name] for line in of]):.1f}" for name in names)
        auto = ", ".join(str(line["auto"]) for line in of)
        print(f"| {data} | {of[0]['classes']} | {means} | {auto} | {np.mean([line['nmi auto'] for line in of]):.1f} |")


def main() -> None:
    """Train on each set, or take the encoder that was given, and sort."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--run", type=Path, default=None)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--data", default=",".join(SETS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--miniature", action="store_true")
    given = parser.parse_args()
    if given.miniature:
        given.minutes, given.data = 0.01, "generated"
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.data.split(","):
            data = generated() if given.miniature else pictures(name)
            unlabeled = data[0] if isinstance(data, tuple) else data
            for seed in map(int, given.seeds.split(",")):
                out = (given.out or Path(scratch)) / f"{name}-{given.minutes:g}-{seed}"
                options = {"minutes": given.minutes, "seed": seed, "threads": given.threads, "quiet": True}
                run = given.run or smallview.pretrain(unlabeled, out=out, **RECIPE, **options).path
                line = {"data": name, "seed": seed, **judged(run, data, seed, given.threads)}
                lines.append(line)
                print(json.dumps(line), flush=True)
    table(lines)


if __name__ == "__main__":
    main()
