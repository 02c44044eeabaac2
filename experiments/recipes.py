"""What the recipes of `smallview plan` come to in a few minutes, beside the plain preset; its lines are what `plan` recommends by.

    SMALLVIEW_DATA=... python experiments/recipes.py --out runs/recipes --minutes 3 --data cifar10,digits     # 20 minutes on two cores
    SMALLVIEW_DATA=... python experiments/recipes.py --out runs/recipes --minutes 3 --data flowers,clothing   # shown, not chosen by
    python experiments/recipes.py --miniature                                                                # shows that it runs

CIFAR-10's first 10,000 training pictures, the 1,797 digits that scikit-learn brings, flowers and clothing photographs. Each run is judged by kNN,
the linear probe and five labels a class, beside the untrained encoder. A call that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import smallview
from smallview import ledger
from smallview.recipes import EXPERIMENT, KNOWN, ranked

Pair = tuple[Any, Any]
JUDGED = {"linear": "linear ", "knn20": "knn20 ", "lowshot": "lowshot 5 a class ridge"}


def sets(name: str) -> tuple[Any, Pair, Pair]:
    """(the pictures to train on, labeled pictures, test pictures)."""
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = (digits.images * 15.9375).astype(np.uint8)
        order = np.random.default_rng(0).permutation(len(x))
        x, y = x[order], digits.target[order]
        return x[:1297], (x[:1297], y[:1297]), (x[1297:], y[1297:])
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from shared_pictures import reader

    load = reader()
    if name == "cifar10":
        x, y, test_x, test_y = load.cifar10((1,))
        return x, (x, y), (test_x, test_y)
    parts = getattr(load, name)("train"), getattr(load, name)("test")
    return parts[0], *parts


def generated() -> tuple[Any, Pair, Pair]:
    """Small made pictures for the miniature."""
    random = np.random.default_rng(0)
    y = np.arange(180) % 3
    x = np.clip(random.normal(60 + 40 * y[:, None, None, None], 50, (180, 12, 12, 3)), 0, 255).astype(np.uint8)
    return x[:120], (x[:120], y[:120]), (x[120:], y[120:])


def main() -> None:
    """Run every recipe on every set, or those that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--data", default="cifar10,digits")
    parser.add_argument("--recipes", default="", help="names, with | between; all by default")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--ledger", type=Path, default=None, help="where lines go, OUT/ledger.jsonl by default")
    parser.add_argument("--miniature", action="store_true")
    given = parser.parse_args()
    threads = None
    if given.miniature:
        given.minutes, given.data, threads = 0.01, "generated", 1
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        path = given.ledger or out / "ledger.jsonl"
        for name in given.data.split(","):
            unlabeled, train, test = generated() if given.miniature else sets(name)
            for seed in map(int, given.seeds.split(",")):
                for recipe in KNOWN:
                    known = ledger.read(path, EXPERIMENT) if path.exists() else []
                    asked = not given.recipes or recipe.name in given.recipes.split("|")
                    if not asked or any(
                        (e.arm, e.data, e.seed, e.settings["minutes"]) == (recipe.name, name, seed, given.minutes)
                        for e in known
                    ):
                        continue
                    folder = out / f"{name}-{recipe.name.replace(' ', '-')}-{given.minutes:g}-{seed}"
                    run = smallview.pretrain(
                        unlabeled,
                        out=folder,
                        minutes=given.minutes,
                        seed=seed,
                        sets=recipe.sets,
                        threads=threads,
                        quiet=True,
                        **recipe.given,
                    ).path
                    judged = smallview.evaluate(
                        *(run, train, test, ("knn", "linear", "lowshot")),
                        sets={"lowshot.per_class": (5,), "lowshot.shares": ()},
                        leaks=False,
                        threads=threads,
                    )
                    rows: dict[str, float] = {}
                    for kind, start in JUDGED.items():
                        row = next((row for row in judged if row.metric.startswith(start)), None)
                        if row is not None:
                            rows |= {
                                kind: row.value,
                                f"{kind} untrained": row.floor_untrained,
                                f"{kind} pixels": row.floor_pixels,
                            }
                    cost = json.loads((run / "summary.json").read_text())["cost"]
                    settings = {"minutes": given.minutes, **recipe.given, **recipe.sets}
                    one = ledger.entry(EXPERIMENT, recipe.name, settings, name, seed, cost, rows)
                    ledger.append(path, [one])
                    print(json.dumps({"data": name, "recipe": one.arm, "seed": seed, **one.rows, **one.cost}), flush=True)
        entries = ledger.read(path, EXPERIMENT)
        print(
            json.dumps(
                {
                    "best first": {
                        task: [r.name for r in ranked(task, given.minutes, entries)]
                        for task in ("linear", "few-labels", "retrieval")
                    }
                }
            )
        )


if __name__ == "__main__":
    main()
