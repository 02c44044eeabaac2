"""Pictures in groups on one sheet: group after group in lines, and below each picture its name and what differs from the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from smallview.data.decoding import BadPicture
from smallview.output.sheet import GAP, INK, LETTER, LINE, PAPER, lines_of, name_line, save_sheet

SIDE, ACROSS, MOST = 144, 8, 120  # pixels of a picture, pictures in a line, pictures on a sheet
LINES, TITLE = 5, 14
APART = 20  # pixels between two groups
AROUND = 236  # the gray beside pictures that are no squares
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shown:
    """One picture of a group: its position, its name, and the words below it."""

    position: int
    name: str
    words: tuple[str, ...] = ()


def framed(pixels: Pixels, side: int = SIDE) -> Pixels:
    """The whole picture uint8 [H, W, C] with its own aspect, in a square [side, side, 3]; small ones are enlarged without blur.

    Example:
        >>> framed(np.zeros((20, 10, 1), np.uint8), 8)[0, :, 0].tolist()
        [236, 236, 0, 0, 0, 0, 236, 236]
    """
    height, width, channels = pixels.shape
    image = Image.fromarray(pixels[..., :3] if channels >= 3 else pixels[..., 0]).convert("RGB")
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = image.resize(size, Image.Resampling.NEAREST if scale >= 1.0 else Image.Resampling.BILINEAR, reducing_gap=3.0)
    out = Image.new("RGB", (side, side), (AROUND,) * 3)
    out.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(out)


def fitting(sizes: Sequence[int], most: int = MOST) -> list[int]:
    """Which groups of these sizes a sheet has room for: all, or evenly spread ones with the first and the last among them.

    Example:
        >>> fitting([2, 2, 2]), fitting([2] * 100, 8)
        ([0, 1, 2], [0, 33, 66, 99])
    """
    shown = [min(size, ACROSS) for size in sizes]
    count = len(sizes) if sum(shown) <= most else max(1, int(most * len(sizes) / sum(shown)))
    return np.unique(np.linspace(0, len(sizes) - 1, count).round().astype(int)).tolist() if sizes else []


def _words(group: Sequence[Shown], k: int, font: Any) -> list[str]:
    """The lines below picture k of a group: its name, its words, and how many more there are where the line is full."""
    rest = len(group) - ACROSS
    more = (f"and {rest:,} more",) if rest > 0 and k == ACROSS - 1 else ()
    return [name_line(group[k].name, SIDE, font), *lines_of((*group[k].words, *more), SIDE, font)][:LINES]


def group_sheet(
    groups: Sequence[Sequence[Shown]], read: Callable[[int], Pixels], out: str | Path, title: str, *, apart: int = APART
) -> Path:
    """Write groups of pictures as an image file under a title; of a group, as many as a line holds. A picture that is gone stays gray.

    Raises:
        SmallviewError: a file that cannot be written.
    """
    step = SIDE + GAP
    width = ACROSS * step + (ACROSS // 2 - 1) * apart + 2 * GAP
    font, large = ImageFont.load_default(LETTER), ImageFont.load_default(TITLE)
    head = lines_of(title.split(), width - 2 * GAP, large, " ")
    places, line, left, right = [], 0, GAP, 0
    for group in groups:
        wide = min(len(group), ACROSS) * step
        if left > GAP and left + wide > width:
            line, left = line + 1, GAP
        places.append((left, line))
        left += wide + apart
        right = max(right, left - apart)
    top = 2 * GAP + len(head) * (TITLE + 4)
    words = [[_words(group, k, font) for k in range(min(len(group), ACROSS))] for group in groups]
    tall = SIDE + 3 * GAP + LINE * max((len(lines) for line in words for lines in line), default=0)
    whole = max(right + GAP, min(width, 2 * GAP + max(round(large.getlength(text)) for text in head)))
    sheet = Image.new("RGB", (whole, top + (line + 1) * tall if groups else top + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for n, text in enumerate(head):
        pen.text((GAP, GAP + n * (TITLE + 4)), text, fill=INK, font=large)
    for group, below, (x, row) in zip(groups, words, places, strict=True):
        for k, (one, lines) in enumerate(zip(group, below, strict=False)):
            left, y = x + k * step, top + row * tall
            try:
                sheet.paste(Image.fromarray(framed(read(one.position))), (left, y))
            except BadPicture:
                pen.rectangle((left, y, left + SIDE, y + SIDE), fill=(AROUND,) * 3)
            for n, text in enumerate(lines):
                pen.text((left, y + SIDE + 1 + n * LINE), text, fill=INK, font=font)
    return save_sheet(sheet, out)
