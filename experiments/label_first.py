"""Which pictures should be labeled first? `smallview select` against random choice, by what the same probe learns from them.

    SMALLVIEW_DATA=... python experiments/label_first.py --data cifar10 --run RUN     # 5,000 pictures; a minute on one core
    SMALLVIEW_DATA=... python experiments/label_first.py --data flowers --run RUN     # 1,780 of 89 classes
    SMALLVIEW_DATA=... python experiments/label_first.py --data clothing --run RUN    # 640 of 10 classes
    python experiments/label_first.py --data digits                                    # scikit-learn's, 8x8: raw pixels in place of an encoder
    python experiments/label_first.py --miniature                                     # generated pictures, seconds; shows that it runs

RUN is an encoder trained without labels on the same pictures; without --run it is trained first. A draw is four fifths of the pictures, at
random, as those that may be labeled; every way of choosing sees the same ten. Two probes on frozen features are fitted on the labeled
pictures alone and judged on all test pictures: ridge regression to one-hot classes, its penalty fixed, and the cosine with the mean of each
class. Ways: `random`; `select`, the order of smallview.select and its beginnings; `labels`, smallview.select with by="labels" in rounds of --round,
the first one by coverage, each next one with the labels of all before; `clusters`, one picture from the middle of each k-means
cluster, as pretrain's subset.chosen_by does. Printed: a JSON line for each way and number of labels: for each probe the mean over draws
with the half-width of its 95 % interval and the paired difference to random with its own, of `labels` also that to `select`, and how many classes
have a label at all.
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
import torch

import smallview
from smallview.data.sources import open_source
from smallview.data.subsets import typical_and_diverse
from smallview.evaluation.coverage import cover
from smallview.evaluation.lowshot import few_labels
from smallview.evaluation.metrics import t_factor
from smallview.evaluation.ridge import fit_ridge
from smallview.evaluation.unsure import doubt_of, enough
from smallview.seeds import generator

AMOUNTS, DRAWS, SHARE = (50, 100, 200, 500), 10, 0.8
PENALTY = 0.1
TRAINED: dict[str, dict[str, Any]] = {
    "cifar10": {"size": 32, "epochs": 20},
    "flowers": {"size": 64, "epochs": 20},
    "clothing": {"size": 64, "epochs": 120},
}


def chosen_by(way: str, x: np.ndarray, y: np.ndarray, most: int, draw: int, each: int) -> dict[int, np.ndarray]:
    """The positions that a way of choosing takes, for each number of labels up to `most`; only `labels` sees any of y, of what it chose before."""
    amounts = [n for n in AMOUNTS if n <= most]
    if way == "random":
        order = generator(draw, "label first").permutation(len(x))
    elif way == "select":
        order = cover(x, amounts[-1]).chosen
    elif way == "labels":
        order = in_rounds(x, y, amounts[-1], each)
    else:
        return {n: typical_and_diverse(x, n, draw) for n in amounts}
    return {n: order[:n] for n in amounts}


def in_rounds(x: np.ndarray, y: np.ndarray, n: int, each: int) -> np.ndarray:
    """As many positions as asked, chosen as `select --by labels` does in one round after another."""
    order = cover(x, each).chosen
    while len(order) < n:
        told = np.full(len(x), -1)
        told[order] = y[order]
        weights = doubt_of(x, told).weights if enough(told) else None
        order = np.concatenate([order, cover(x, min(each, n - len(order)), told >= 0, weights=weights).chosen])
    return order


def accuracies(parts: tuple[torch.Tensor, ...], picks: list[np.ndarray], classes: int) -> dict[str, np.ndarray]:
    """Accuracy in percent of each probe that sees only the training pictures of each pick."""
    train, labels, test, test_labels = parts
    ridge = []
    for pick in picks:
        which = torch.from_numpy(pick)
        predicted = fit_ridge(train[which], labels[which], classes, PENALTY).predict(test)
        ridge.append(100.0 * float((predicted == test_labels).double().mean()))
    means = [few_labels(train, labels, test, test_labels, [pick], "prototypes", classes).mean for pick in picks]
    return {"ridge": np.array(ridge), "means": np.array(means)}


def judge(x: Any, y: Any, test_x: Any, test_y: Any, draws: int, most: int, each: int) -> None:
    """Print a line for each way and number of labels."""
    parts = tuple(torch.from_numpy(np.asarray(value)) for value in (x, y, test_x, test_y))
    classes = int(max(parts[1].max(), parts[3].max())) + 1
    pools = [np.sort(generator(draw, "label first pool").permutation(len(x))[: round(SHARE * len(x))]) for draw in range(draws)]
    base: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    half = t_factor(draws) / np.sqrt(draws)
    for way in ("random", "select", "labels", "clusters"):
        began = time.process_time()
        taken = [chosen_by(way, x[pool], y[pool], most, draw, each) for draw, pool in enumerate(pools)]
        seconds = (time.process_time() - began) / draws
        for n in taken[0]:
            picks = [pool[one[n]] for pool, one in zip(pools, taken, strict=True)]
            found = accuracies(parts, picks, classes)
            base[way, n] = found
            line: dict[str, Any] = {"way": way, "labels": n}
            for probe, values in found.items():
                told = {"accuracy %": values.mean(), "interval": half * values.std(ddof=1)}
                for other in ("random", *("select",) * (way == "labels")):
                    apart = values - base[other, n][probe]
                    told |= {
                        f"above {other}": apart.mean(),
                        f"its interval{' to select' * (other == 'select')}": half * apart.std(ddof=1),
                    }
                line[probe] = {key: round(float(value), 2) for key, value in told.items()}
            line["classes seen"] = round(float(np.mean([len(np.unique(y[pick])) for pick in picks])), 1)
            print(json.dumps({**line, "cpu seconds to choose": round(seconds, 2)}), flush=True)


def main() -> None:
    """Train or take an encoder, choose, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=(*TRAINED, "digits"), default="cifar10")
    parser.add_argument("--run", default=None)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--round", type=int, default=50, help="labels of a round of --by labels")
    parser.add_argument("--miniature", action="store_true")
    given = parser.parse_args()
    if given.data == "digits":
        torch.set_num_threads(given.threads)
        (pixels, y), (test, test_y) = read("digits")
        return judge(pixels, y, test, test_y, DRAWS, AMOUNTS[-1], given.round)
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        if given.miniature:
            random = np.random.default_rng(0)
            y = np.arange(300) % 6
            x = np.clip(random.normal(40 + 35 * y[:, None, None, None], 30, (300, 12, 12, 3)), 0, 255).astype(np.uint8)
            parts, draws, most = ((x[:240], y[:240]), (x[240:], y[240:])), 3, 100
            settings: dict[str, Any] = {"size": 12, "epochs": 4, "batch_size": 48, "encoder": "dense_small:16-32"}
        else:
            parts, draws, most = read(given.data), DRAWS, AMOUNTS[-1]
            settings = {**TRAINED[given.data], "encoder": "dense_small"}
        (data, y), (test, test_y) = parts
        torch.set_num_threads(given.threads)
        run = (
            given.run
            or smallview.pretrain(data, "simclr", out=out / "encoder", threads=given.threads, quiet=True, **settings).path
        )
        features = [smallview.embed(run, part, threads=given.threads, quiet=True) for part in (data, test)]
        judge(features[0], np.asarray(y, np.int64), features[1], np.asarray(test_y, np.int64), draws, most, given.round)


def read(name: str) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """((pictures, labels) to choose from, and to judge on)."""
    if name == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(pixels))
        x, y = pixels[order].astype(np.float32), labels[order].astype(np.int64)
        return (x[:1300], y[:1300]), (x[1300:], y[1300:])
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from shared_pictures import reader

    if name == "cifar10":
        x, y, test_x, test_y = reader().cifar10((1,))
        return (x[:5000], y[:5000]), (test_x[:5000], test_y[:5000])
    parts = []
    for part in ("train", "test"):
        source = open_source(getattr(reader(), name)(part))
        parts.append((str(getattr(reader(), name)(part)), source.labels))
    return parts[0], parts[1]


if __name__ == "__main__":
    main()
