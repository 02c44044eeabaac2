"""Pictures in sections on one sheet for human eyes: a picture to begin with where there is one, then rows of others, words below each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from smallview.errors import SmallviewError
from smallview.output.sheet import INK, PAPER, Cell, name_line, save_sheet
from smallview.settings.fitting import printable

SIDE, GAP, MARGIN, LINE, LETTER, TITLE = 144, 10, 20, 15, 12, 15
FAINT, FRAME = (95, 95, 95), (30, 90, 200)
MOST_PIXELS = 120_000_000  # of a sheet


@dataclass(frozen=True, eq=False)
class Section:
    """A heading, the picture that its others belong to or None, and the others, each with words and a name below."""

    title: str
    cells: Sequence[Cell]
    lead: Cell | None = None


def gallery(sections: Sequence[Section], out: str | Path, *, title: str, columns: int = 6, side: int = SIDE) -> Path:
    """Write sections, one below the other, as an image file; pictures keep their shape within squares of `side` pixels.

    Raises:
        SmallviewError: a file that cannot be written.
    """
    led = any(section.lead is not None for section in sections)
    most = max((len(section.cells) for section in sections), default=1)
    columns = max(1, math.ceil(most / math.ceil(most / columns))) if most else 1  # rows as long as one another
    rows = [max(1, math.ceil(len(section.cells) / columns)) for section in sections]
    large = 2 * side + GAP if max(rows, default=1) > 1 else side
    step, tall = side + GAP, side + 2 * LINE + GAP + 2
    height = MARGIN + TITLE + GAP + sum(TITLE + GAP + count * tall + GAP for count in rows) + MARGIN
    left = MARGIN + (large + 2 * GAP) * led
    width = max(left + columns * step - GAP + MARGIN, 520)
    if width * height > MOST_PIXELS:
        raise SmallviewError(
            f"a sheet of {sum(rows):,} rows is too large ({width:,} x {height:,} pixels); ask for fewer pictures"
        )
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, fonts = ImageDraw.Draw(sheet), (ImageFont.load_default(LETTER), ImageFont.load_default(TITLE))
    pen.text((MARGIN, MARGIN - 4), name_line(title, width - 2 * MARGIN, fonts[1]), fill=INK, font=fonts[1])
    top = MARGIN + TITLE + GAP
    for section, count in zip(sections, rows, strict=True):
        pen.line((MARGIN, top, width - MARGIN, top), fill=(215, 215, 215))
        pen.text((MARGIN, top + 4), name_line(section.title, width - 2 * MARGIN, fonts[0]), fill=FAINT, font=fonts[0])
        top += TITLE + GAP
        if section.lead is not None:
            lead = large if count > 1 else side
            _place(sheet, section.lead, MARGIN, top, lead, fonts[0])
            pen.rectangle((MARGIN - 3, top - 3, MARGIN + lead + 2, top + lead + 2), outline=FRAME, width=3)
        for n, cell in enumerate(section.cells):
            _place(sheet, cell, left + n % columns * step, top + n // columns * tall, side, fonts[0])
        top += count * tall + GAP
    return save_sheet(sheet, out)


def _place(
    sheet: Image.Image, cell: Cell, left: int, top: int, side: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    """A picture within a square, whole, with the words below it in black and its name in gray."""
    pixels = cell.pixels
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] in (1, 2) else pixels[:, :, :3])).convert(
        "RGB"
    )
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    # small pictures stay squares of pixels, as they are, and large ones are averaged
    kind = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((left, top, left + side - 1, top + side - 1), fill=(242, 242, 242))
    sheet.paste(image.resize(size, kind), (left + (side - size[0]) // 2, top + (side - size[1]) // 2))
    words = [(printable(", ".join(cell.words)), INK), (cell.name, FAINT)]
    for n, (text, colour) in enumerate((text, colour) for text, colour in words if text):
        pen.text((left, top + side + 2 + n * LINE), name_line(text, side, font), fill=colour, font=font)
