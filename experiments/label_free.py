"""Do scores that need no labels say which encoder is better? Many short trainings, each judged by a linear probe and by every such score.

    SMALLVIEW_DATA=... python experiments/label_free.py --out runs/label-free    # CIFAR-10, 40 trainings, half an hour on two cores
    python experiments/label_free.py --miniature                                 # generated pictures, seconds; shows that it runs

The trainings differ in method, temperature, learning rate and length; all have one seed, `dense_small` at 32 px, and the first 5,000
training pictures in batches of 128. Linear accuracy is on 5,000 test pictures, from all labels of the training pictures; label-free
scores see 1,000 of the test pictures without their labels. Printed: a JSON line per training, then Spearman's correlation of each score with
accuracy and its 95 % interval, over all trainings and within SimCLR. A call that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import smallview
from smallview.evaluation.label_free import clid, spearman
from smallview.evaluation.unlabeled import DIRECTION

MOST = 5_000
SCORED = {"label_free.pictures": 1000, "label_free.views": 6}
TEMPERATURE, LR = "method.objective.contrastive.loss.temperature", "optimizer.lr"


@dataclass(frozen=True)
class Training:
    """A method, what differs from its preset, and how long it trains."""

    method: str
    epochs: float
    lr: float = 1.0
    temperature: float | None = None

    @property
    def name(self) -> str:
        """What its folder is called."""
        warm = "" if self.temperature is None else f"-t{self.temperature:g}"
        return f"{self.method}-e{self.epochs:g}-lr{self.lr:g}{warm}"


def trainings() -> list[Training]:
    """The forty."""
    out = [Training("simclr", 3.0, temperature=t) for t in (0.03, 0.07, 0.1, 0.5, 1.0)]
    out += [Training("simclr", 3.0, lr) for lr in (0.01, 0.1, 0.3, 3.0, 10.0)]
    out += [Training("simclr", e) for e in (0.5, 1.0, 3.0, 6.0)]
    out += [Training("moco_v2", 3.0, temperature=t) for t in (0.05, 0.1, 0.5)]
    out += [Training("moco_v2", e, lr) for e, lr in ((3.0, 1.0), (3.0, 0.1), (3.0, 3.0), (1.0, 1.0), (6.0, 1.0))]
    out += [Training("byol", e, lr) for e, lr in ((3.0, 1.0), (3.0, 0.1), (3.0, 3.0), (1.0, 1.0), (6.0, 1.0))]
    out += [Training("vicreg", e, lr) for e, lr in ((3.0, 1.0), (3.0, 0.1), (3.0, 3.0), (1.0, 1.0), (6.0, 1.0))]
    out += [Training("barlow_twins", e, lr) for e, lr in ((3.0, 1.0), (3.0, 0.1), (3.0, 3.0), (1.0, 1.0))]
    out += [
        Training("simclr_noise_only", 3.0),
        Training("simclr_one_patch", 3.0),
        Training("lejepa", 3.0),
        Training("simsiam", 3.0),
    ]
    return out


def train(one: Training, pictures: Any, out: Path, size: int, batch: int | None, threads: int | None) -> Path:
    """Train it, or find it trained."""
    chosen = smallview.preset(one.method)
    sets: dict[str, Any] = {LR: one.lr * float(chosen.optimizer.lr)}
    if one.temperature is not None:
        sets[TEMPERATURE] = one.temperature
    more = {k: v for k, v in (("batch_size", batch), ("threads", threads)) if v is not None}
    return smallview.pretrain(
        pictures, one.method, "dense_small", epochs=one.epochs, size=size, out=out / one.name, sets=sets, quiet=True, **more
    ).path


def main() -> None:
    """Train all, judge all, correlate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--miniature", action="store_true")
    parser.add_argument("--only-train", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        if given.miniature:
            random = np.random.default_rng(0)
            y = np.arange(240) % 4
            x = np.clip(random.normal(60 + 40 * y[:, None, None, None], 50, (240, 12, 12, 3)), 0, 255).astype(np.uint8)
            data, size, batch, chosen = (x[:160], y[:160], x[160:], y[160:]), 12, 32, trainings()[::12]
        else:
            sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
            from cifar10_road import read_cifar10

            x, y, test_x, test_y = read_cifar10()
            data, size, batch, chosen = (x[:MOST], y[:MOST], test_x[:MOST], test_y[:MOST]), 32, 128, trainings()
        threads = 1 if given.miniature else None
        folders = [train(one, data[0], out, size, batch, threads) for one in chosen]
        if given.only_train:
            return
        judge(chosen, folders, data, SCORED | {"label_free.views": 2} if given.miniature else SCORED, threads)


def judge(chosen: list[Training], folders: list[Path], data: Any, scored: dict[str, Any], threads: int | None) -> None:
    """Print every training's scores, then the correlations."""
    x, y, test_x, test_y = data
    told: list[dict[str, Any]] = []
    for one, folder in zip(chosen, folders, strict=True):
        (linear,) = smallview.evaluate(folder, (x, y), (test_x, test_y), "linear", leaks=False, threads=threads)
        scores = smallview.evaluate(folder, x, test_x, "label_free", sets=scored, leaks=False, threads=threads)
        found = {row.metric.split()[1]: row.value for row in scores}
        summary = json.loads((folder / "summary.json").read_text())
        line = {
            "training": one.name,
            "method": one.method,
            "linear": linear.value,
            **found,
            "seconds": summary["cost"]["train_seconds"],
        }
        told.append(line)
        print(json.dumps(line), flush=True)
    learnability, dimension = ([line[name] for line in told] for name in ("learnability", "dimension"))
    for line, value in zip(told, clid(learnability, dimension), strict=True):
        line["clid"] = float(value)
        if "alpha_req" in line:
            line["alpha_req"] = -abs(line["alpha_req"] - 1.0)  # nearest to 1 is said to be best
        for name in ("alignment", "uniformity"):
            line[name] = -line[name]  # lower is said to be better
    for group, lines in (("all", told), ("simclr", [line for line in told if line["method"] == "simclr"])):
        for name in (*DIRECTION, "clid"):
            known = [line for line in lines if name in line]
            if len(known) < 4:
                continue
            try:
                found_rank = asdict(spearman([line[name] for line in known], [line["linear"] for line in known]))
            except ValueError as error:  # equal accuracies or scores have no ranks
                print(json.dumps({"group": group, "score": name, "none": str(error)}), flush=True)
                continue
            print(json.dumps({"group": group, "score": name, **{k: round(v, 3) for k, v in found_rank.items()}}), flush=True)


if __name__ == "__main__":
    main()
