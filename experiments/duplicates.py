"""Are planted copies found, in the kind that they belong to? Exact, resized, recompressed, cropped and mirrored ones.

    SMALLVIEW_DATA=... python experiments/duplicates.py --data cifar10 --run RUN --out runs/duplicates    # 5,000 pictures of 32 px
    SMALLVIEW_DATA=... python experiments/duplicates.py --data flowers --run RUN --out runs/duplicates    # 1,960 of 128 px
    python experiments/duplicates.py --miniature                                # generated pictures, seconds; shows that it runs

RUN is an encoder trained without labels on pictures of that kind. For each kind, a fiftieth of the pictures gets a copy: the same pixels in
another file; three quarters of the side; JPEG of quality 50; mirrored; crops of several sizes and shapes, one of
them mirrored, one made large again and recompressed. The first is exact, all others are near copies.
Printed: a JSON line for each kind of copy (how many are in a group with
their original, by kind of group), then one for each kind of group (how many of its pairs were planted). Pairs that nobody planted may be
real copies: look at the sheets in --out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import smallview
from smallview.data.sources import open_source

# how many parts of each side a crop keeps, and where it lies: in the middle, or anywhere
CROPS = {
    "centre crop, 85 %": (0.85, 0.85),
    "crop, 95 %": (0.95, 0.95),
    "crop, 85 %": (0.85, 0.85),
    "crop, 70 %": (0.7, 0.7),
    "crop, 75 by 90 %": (0.75, 0.9),
    "crop, 85 %, mirrored": (0.85, 0.85),
    "crop, 85 %, resized, recompressed": (0.85, 0.85),
}
PLANTED = ("exact", "resized", "recompressed", "mirrored", *CROPS)


def copied(kind: str, picture: Image.Image, path: Path, random: np.random.Generator) -> None:
    """Write a copy of this kind."""
    width, height = picture.size
    if kind == "recompressed":
        picture.save(path.with_suffix(".jpg"), quality=50)
        return
    if kind == "resized":
        picture = picture.resize((round(0.75 * width), round(0.75 * height)), Image.Resampling.LANCZOS)
    elif kind in CROPS:
        wide, tall = (round(part * side) for part, side in zip(CROPS[kind], picture.size, strict=True))
        left, top = int(random.integers(width - wide + 1)), int(random.integers(height - tall + 1))
        if kind.startswith("centre"):
            left, top = (width - wide) // 2, (height - tall) // 2
        picture = picture.crop((left, top, left + wide, top + tall))
    if kind.endswith("mirrored"):
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if kind.endswith("resized, recompressed"):
        picture.resize((width, height), Image.Resampling.BICUBIC).save(path.with_suffix(".jpg"), quality=85)
        return
    picture.save(path.with_suffix(".png"))


def plant(read: Callable[[int], Any], count: int, folder: Path, share: float = 0.02) -> dict[str, tuple[str, str]]:
    """Write the pictures and their copies; -> of each copy's name, its kind and the name of its original."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [Image.fromarray(read(i)) for i in range(count)]
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i:05}.png")
    each = max(2, round(share * count))
    chosen = random.permutation(count)[: each * len(PLANTED)]
    told = {}
    for place, i in enumerate(chosen):
        kind = PLANTED[place % len(PLANTED)]
        name = f"{i:05}-{PLANTED.index(kind)}"
        copied(kind, pictures[i], folder / name, random)
        told[name] = (kind, f"{i:05}")
    return told


def judge(found: smallview.Duplicates, planted: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Recall for each kind of copy, precision for each kind of group."""
    originals = {name: original for name, (_, original) in planted.items()}
    hits: dict[str, dict[str, int]] = {kind: dict.fromkeys(("exact", "near", "semantic"), 0) for kind in PLANTED}
    groups = []
    for where in ("exact", "near", "semantic"):
        pairs = right = 0
        for group in getattr(found, where):
            names = [Path(one.name).stem for one in group]
            roots = [originals.get(name, name) for name in names]
            pairs += len(names) - 1
            right += len(names) - len(set(roots))
            for name in names:
                if name in planted and originals[name] in names:
                    hits[planted[name][0]][where] += 1
        groups.append(
            {"group": where, "pairs": pairs, "planted": right, "precision %": round(100 * right / pairs, 1) if pairs else None}
        )
    copies = []
    for kind in PLANTED:
        total = sum(k == kind for k, _ in planted.values())
        part = {where: round(100 * count / total, 1) for where, count in hits[kind].items()}
        copies.append(
            {
                "copy": kind,
                "planted": total,
                **{f"{where} %": value for where, value in part.items()},
                "any %": round(sum(part.values()), 1),
            }
        )
    return [*copies, *groups]


def main() -> None:
    """Plant, find, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("cifar10", "flowers"), default="cifar10")
    parser.add_argument("--run", default=None)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--near", type=float, default=0.995)
    parser.add_argument("--semantic", type=float, default=0.4)
    parser.add_argument("--miniature", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        run: Any = given.run
        if given.miniature:
            random = np.random.default_rng(0)
            small = random.integers(0, 256, (60, 8, 8, 3), np.uint8)
            pictures = [np.asarray(Image.fromarray(one).resize((40, 40), Image.Resampling.BICUBIC)) for one in small]
            folder = out / "miniature"
            planted = plant(lambda i: pictures[i], 60, folder)
            run = smallview.pretrain(
                folder, epochs=8, batch_size=30, size=16, encoder="dense_small:16-32", out=out / "run", threads=1, quiet=True
            ).path
        else:
            folder = out / given.data
            planted = plant(*read(given.data), folder)
        began = time.process_time()
        found = smallview.duplicates(run, folder, near=given.near, semantic=given.semantic, out=out / f"{folder.name}-found")
        for line in judge(found, planted):
            print(json.dumps(line), flush=True)
        print(
            json.dumps(
                {"pictures": found.pictures, "limits": found.limits, "cpu seconds": round(time.process_time() - began, 1)}
            )
        )


def read(name: str) -> tuple[Callable[[int], Any], int]:
    """(reads picture i, how many of them)."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from shared_pictures import reader

    if name == "cifar10":
        x = reader().cifar10((1,))[0][:4098]
        return lambda i: x[i], len(x)
    source = open_source(reader().flowers("train"))
    return lambda i: source.read(i), len(source)


if __name__ == "__main__":
    main()
