"""The whole road on CIFAR-10: the first 10,000 training pictures, each method for a few minutes, judged on the 10,000 test pictures.

    SMALLVIEW_DATA=... python benchmarks/cifar10_road.py --minutes 8 --out runs/cifar10-road

SMALLVIEW_DATA is a folder with the CIFAR-10 reader `load.py`. Prints one JSON line per row, floors beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from shared_pictures import reader

import smallview


def read_cifar10() -> Any:
    """(train_x, train_y, test_x, test_y) of the first training batch and the test set."""
    return reader().cifar10((1,))


def main() -> None:
    """Train and judge every method asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", choices=smallview.methods())
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10-road"))
    given = parser.parse_args()
    train_x, train_y, test_x, test_y = read_cifar10()
    for name in given.method or smallview.methods():
        out = given.out / f"{name}-seed{given.seed}"
        started = time.monotonic()
        run = smallview.pretrain(train_x, name, "dense_small", minutes=given.minutes, seed=given.seed, out=out)
        wall = time.monotonic() - started
        for row in smallview.evaluate(run.path, (train_x, train_y), (test_x, test_y)):
            floor = max(row.floor_pixels or 0.0, row.floor_untrained or 0.0)
            told = {
                "method": name,
                "seed": given.seed,
                "metric": row.metric,
                "value": round(row.value, 2),
                "pixels": row.floor_pixels,
                "untrained": row.floor_untrained,
                "above_both": round(row.value - floor, 2),
                "pretrain_wall_seconds": round(wall, 1),
                "cost": row.cost,
            }
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
