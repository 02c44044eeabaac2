"""How well masks found without labels agree with the masks of photos.

    python benchmarks/saliency.py --json saliency.json

The 242 photos of people of $SMALLVIEW_DATA/people-masks at a short side of 160 px, one thread. IoU is the intersection of mask and truth
over their union; `best` takes the best threshold for each picture, which nobody knows. Beside each estimator: `everything`, the mask of
all pixels. ms are of one picture of 160 x 160 in batches of 32. --encoder RUN adds the first component of an encoder's feature map;
--sheets DIR writes pictures to look at.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from smallview.data.decoding import shrink
from smallview.foregrounds import encoder_component
from smallview.views.saliency import ESTIMATORS, Estimator, foreground

SIDE = 160
FIXED = (0.3, 0.5, 0.7)
FINE = np.linspace(0.02, 0.98, 49)


def photos() -> list[tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
    """(name, picture [H, W, 3], truth [H, W]) of every pair."""
    root = Path(os.environ["SMALLVIEW_DATA"])
    spec = importlib.util.spec_from_file_location("load", root / "load.py")
    assert spec is not None and spec.loader is not None
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    out = []
    for photo, mask in load.people_masks():
        picture, truth = load.read_pair(photo, mask)
        small = shrink(np.where(truth, 255, 0).astype(np.uint8)[..., None], SIDE)[..., 0] >= 128
        out.append((photo.stem, shrink(picture, SIDE), small))
    return out


def ellipses(n: int = 64, seed: int = 0) -> list[tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
    """Ellipses of one colour and noise on a ground of another: 64 pixels."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    out = []
    while len(out) < n:
        colours = draw.uniform(0, 255, (2, 3))
        middle, axes, turn = draw.uniform(20, 44, 2), draw.uniform(9, 20, 2), draw.uniform(0, np.pi)
        if np.abs(colours[0] - colours[1]).max() < 60:
            continue
        u, v = y - middle[0], x - middle[1]
        a, b = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
        inside = (a / axes[0]) ** 2 + (b / axes[1]) ** 2 < 1
        picture = np.where(inside[..., None], *colours) + draw.normal(0, 15, (64, 64, 3))
        out.append((str(len(out)), picture.clip(0, 255).astype(np.uint8), inside))
    return out


def iou(mask: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    return float((mask & truth).sum() / max(1, (mask | truth).sum()))


def milliseconds(estimator: Estimator, rounds: int = 5) -> float:
    """Of a picture of 160 x 160, mask and all, in batches of 32: the median of a few rounds."""
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (32, 3, SIDE, SIDE), np.uint8))
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        foreground(estimator(batch), "otsu")
        taken.append((time.perf_counter() - started) / len(batch))
    return round(1000 * statistics.median(taken), 2)


def judge(estimator: Estimator, pairs: list[Any]) -> tuple[dict[str, Any], list[npt.NDArray[np.bool_]]]:
    """IoU of every cut of the maps, and the masks by Otsu's."""
    found: dict[str, list[float]] = {name: [] for name in ("otsu", *map(str, FIXED), "best")}
    masks = []
    for _, picture, truth in pairs:
        batch = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]
        maps = estimator(batch)
        masks.append(foreground(maps, "otsu")[0, 0].numpy())
        grays = maps[0, 0].numpy()
        found["otsu"].append(iou(masks[-1], truth))
        for cut in FIXED:
            found[str(cut)].append(iou(grays >= cut, truth))
        found["best"].append(max(iou(grays >= cut, truth) for cut in FINE))
    row = {f"iou_{name}": round(float(np.mean(values)), 3) for name, values in found.items()}
    over = float(np.mean(np.array(found["otsu"]) > 0.5))
    halves = [round(float(np.mean(found["otsu"][k::2])), 3) for k in (0, 1)]
    each = [round(value, 3) for value in found["otsu"]]
    return {
        **row,
        "over_half": round(over, 3),
        "halves": halves,
        "ms": milliseconds(estimator),
        "each": each,
    }, masks


def sheet(pairs: list[Any], masks: list[Any], scores: list[float], which: list[int], out: Path) -> None:
    """Picture | truth | mask | masked, one row for each."""
    cell = 128
    canvas = Image.new("RGB", (8 * (cell + 4), -(-len(which) // 2) * (cell + 4)), "white")
    for n, k in enumerate(which):
        _, picture, truth = pairs[k]
        cut = np.where(masks[k][..., None], picture, 128).astype(np.uint8)
        gray = [np.where(each, 255, 0).astype(np.uint8) for each in (truth, masks[k])]
        for c, shown in enumerate((picture, gray[0], gray[1], cut)):
            tile = Image.fromarray(shown).convert("RGB").resize((cell, cell))
            canvas.paste(tile, (((n % 2) * 4 + c) * (cell + 4), n // 2 * (cell + 4)))
    out.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(out)
    print(out, " ".join(f"{pairs[k][0]}:{scores[k]:.2f}" for k in which), file=sys.stderr)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--json", type=Path)
    parse.add_argument("--encoder")
    parse.add_argument("--sheets", type=Path)
    options = parse.parse_args()
    torch.set_num_threads(1)
    estimators = dict(ESTIMATORS)
    if options.encoder:
        estimators["encoder"] = encoder_component(options.encoder, 3)[0]
    figures: dict[str, Any] = {}
    for name, pairs in (("photos of people", photos()), ("generated ellipses", ellipses())):
        full = [iou(np.ones_like(truth), truth) for *_, truth in pairs]
        figures[name] = {
            "everything": {
                "iou_otsu": round(float(np.mean(full)), 3),
                "over_half": round(float(np.mean(np.array(full) > 0.5)), 3),
            }
        }
        for which, estimator in estimators.items():
            estimator(torch.zeros(1, 3, 32, 32))  # what is set up once is not timed
            figures[name][which], masks = judge(estimator, pairs)
            if options.sheets and name.startswith("photos"):
                scores = figures[name][which]["each"]
                order = np.argsort(scores)
                for part, chosen in (
                    ("worst", order[:16]),
                    ("middle", order[len(order) // 2 - 8 :][:16]),
                    ("best", order[-16:]),
                ):
                    sheet(pairs, masks, scores, chosen.tolist(), options.sheets / f"{which}-{part}.png")
    columns = ("iou_otsu", "over_half", *(f"iou_{cut}" for cut in FIXED), "iou_best", "ms")
    for name, rows in figures.items():
        print(f"\n{name}\n| estimator | " + " | ".join(columns) + " |")
        print("|---|" + "---|" * len(columns))
        for which, row in rows.items():
            print(f"| {which} | " + " | ".join(str(row.get(column, "")) for column in columns) + " |")
    if options.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__, "threads": 1}
        options.json.write_text(json.dumps({**machine, "side": SIDE, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
