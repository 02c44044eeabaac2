"""The probes beside the libraries that people use for them: the linear fit and scikit-learn, nearest neighbours and faiss.

    SMALLVIEW_DATA=... python benchmarks/probes.py --rounds 3     # faiss: pip install faiss-cpu, skipped where it is not

Features are those of an untrained `dense_small` of CIFAR-10's 50,000 + 10,000 pictures: [50,000, 512] in 10 classes. Both arms run in turn in
one process on the same threads; printed are the median of paired ratios, the times, and both accuracies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from shared_pictures import reader
from torch import Tensor

from smallview.evaluation.features import Judged, extract
from smallview.evaluation.judge import untrained
from smallview.evaluation.knn import nearest
from smallview.evaluation.linear import fit_linear, fit_logistic, standardisation
from smallview.evaluation.subject import open_labeled
from smallview.networks.encoders import build_encoder

PENALTY = 1e-3


def features(threads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(train, test, labels, test labels) of all of CIFAR-10."""
    load = reader()
    x, y, test_x, test_y = load.cifar10()
    net, config = build_encoder("dense_small", size=32)
    config = replace(config, mean=(0.5,) * 3, std=(0.25,) * 3)
    train, test = open_labeled((x, y.astype(np.int64)), (test_x, test_y.astype(np.int64)), config)
    fresh = untrained(Judged(net, config, "untrained", 0, {}), train.pictures, 0)
    return (
        extract(fresh, config, train.pictures, threads=threads),
        extract(fresh, config, test.pictures, threads=threads),
        train.targets,
        test.targets,
    )


def pairs(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Both in turn: median of their ratio, the smallest and the largest, the median times; the last results."""
    times: list[tuple[float, float]] = []
    found: tuple[Any, Any] = (None, None)
    for n in range(rounds):
        took: dict[str, float] = {}
        results: dict[str, Any] = {}
        for name in ("ours", "theirs") if n % 2 == 0 else ("theirs", "ours"):
            started = time.perf_counter()
            results[name] = {"ours": ours, "theirs": theirs}[name]()
            took[name] = time.perf_counter() - started
        times.append((took["ours"], took["theirs"]))
        found = results["ours"], results["theirs"]
    ratios = [b / a for a, b in times]
    return {
        "times_as_fast": round(statistics.median(ratios), 2),
        "from": round(min(ratios), 2),
        "to": round(max(ratios), 2),
        "seconds": round(statistics.median(a for a, _ in times), 2),
        "their_seconds": round(statistics.median(b for _, b in times), 2),
        "results": found,
    }


def main() -> None:
    """Print one JSON line per comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    x, z, y, t = features(given.threads)
    mean, std = standardisation(x)
    a, b = (x - mean) / std, (z - mean) / std
    wide, wide_test, labels = a.numpy(), b.numpy(), y.numpy()

    from sklearn.linear_model import LogisticRegression

    def scikit() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says where 1,000 steps do not suffice
            return LogisticRegression(C=1 / (PENALTY * len(a)), max_iter=1000, tol=1e-4).fit(wide, labels)

    told = pairs(lambda: fit_logistic(a, y, 10, PENALTY), scikit, given.rounds)
    (weight, bias), theirs = told.pop("results")
    mine = (b @ weight + bias).argmax(1)
    other = torch.from_numpy(theirs.predict(wide_test))
    told |= {
        "accuracy": round(100 * float((mine == t).double().mean()), 2),
        "their_accuracy": round(100 * float((other == t).double().mean()), 2),
        "same_predictions": round(100 * float((mine == other).double().mean()), 2),
        "their_steps": int(theirs.n_iter_[0]),
    }
    print(json.dumps({"what": "one linear fit against scikit-learn", "features": list(a.shape), **told}), flush=True)
    started = time.perf_counter()
    fit_linear(x, y, 10, seed=0)
    print(json.dumps({"what": "the whole linear protocol", "seconds": round(time.perf_counter() - started, 2)}), flush=True)
    try:
        import faiss
    except ImportError:
        print(json.dumps({"what": "kNN against faiss", "skipped": "faiss-cpu is not installed"}))
        return
    faiss.omp_set_num_threads(given.threads)
    unit, unit_test = (torch.nn.functional.normalize(part, dim=1).numpy() for part in (x, z))

    def flat() -> Any:
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(unit)
        return index.search(unit_test, 20)

    told = pairs(lambda: nearest(x, z, 20), flat, given.rounds)
    (_, mine), (_, other_which) = told.pop("results")
    told["same_neighbours"] = round(100 * float((mine == torch.from_numpy(other_which)).double().mean()), 2)
    print(json.dumps({"what": "20 neighbours of 10,000 among 50,000, against faiss flat", **told}), flush=True)


if __name__ == "__main__":
    main()
