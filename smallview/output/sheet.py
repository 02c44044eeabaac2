"""The contact sheet: what the network will see, for human eyes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from smallview.errors import SmallviewError, UsageError
from smallview.files import check_folder
from smallview.records import Batch, Pictures
from smallview.seeds import generator
from smallview.views.making import ViewMaker
from smallview.views.sampling import centre
from smallview.views.view import View

GAP, HEAD = 4, 18
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
PAPER = 255


def view_grid(
    pictures: Pictures,
    views: Sequence[View],
    size: int,
    *,
    seed: int = 0,
    rows: int = 8,
    repeats: int = 4,
    masked: Pictures | None = None,
) -> tuple[list[list[npt.NDArray[np.uint8]]], list[str]]:
    """(rows of uint8 pictures [S, S, C], column titles): each picture's centre, then its views in `repeats` epochs.

    Views that change their size are shown from first to last. masked: the pictures without background.
    """
    chosen = np.sort(generator(seed, "sheet").permutation(len(pictures))[:rows])
    zeros, ones = [0.0] * pictures.channels, [1.0] * pictures.channels
    maker = ViewMaker(pictures, views, size, zeros, ones, seed, masked=masked)
    boxes = centre(pictures.heights[chosen], pictures.widths[chosen], 1.0)
    columns = [maker.crop(chosen, boxes, np.zeros(len(chosen), np.bool_), size)]
    titles = ["picture"]
    for epoch in range(repeats):
        for v, made in enumerate(maker(Batch(chosen, epoch, epoch, epoch / max(1, repeats - 1)))):
            columns.append(made.images)
            seen = "" if made.seen_by == "both" else f" {made.seen_by}"
            titles.append(f"view {v + 1}{seen}")
    cells = [(column.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy() for column in columns]
    return [[column[row] for column in cells] for row in range(len(chosen))], titles


def check_sheet(out: str | Path) -> None:
    """Tells of a sheet that could not be written before its views are made.

    Raises:
        UsageError: an ending that is no picture's. SmallviewError: a folder that cannot be written.
    """
    path = Path(out)
    if path.suffix.lower() not in ENDINGS or path.is_dir():
        raise UsageError(f'--out is "{path}"; wanted a picture file ending in {", ".join(ENDINGS[:-1])} or {ENDINGS[-1]}')
    check_folder(path.parent)


def contact_sheet(grid: list[list[npt.NDArray[np.uint8]]], titles: Sequence[str], out: str | Path, *, cell: int = 96) -> Path:
    """Write a grid of pictures with column titles as an image file; every cell is shown `cell` pixels wide.

    Raises:
        SmallviewError: a file that cannot be written, or an ending that is no picture's.
    """
    wide = len(grid[0]) * (cell + GAP) + GAP
    high = len(grid) * (cell + GAP) + GAP + HEAD
    sheet = Image.new("RGB", (wide, high), (PAPER, PAPER, PAPER))
    pen = ImageDraw.Draw(sheet)
    for i, title in enumerate(titles):
        pen.text((GAP + i * (cell + GAP), 3), title, fill=(0, 0, 0))
    for r, line in enumerate(grid):
        for c, pixels in enumerate(line):
            shown = pixels[:, :, 0] if pixels.shape[2] in (1, 2) else pixels[:, :, :3]
            image = Image.fromarray(shown).convert("RGB")
            kind = Image.Resampling.NEAREST if cell >= image.width else Image.Resampling.BILINEAR
            sheet.paste(image.resize((cell, cell), kind), (GAP + c * (cell + GAP), HEAD + GAP + r * (cell + GAP)))
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".part-{path.name}")
        sheet.save(partial)
        partial.replace(path)
    except (OSError, ValueError, KeyError) as error:
        raise SmallviewError(f"cannot write {path}: {error}; choose another --out ending in .png, .jpg or .webp") from error
    return path
