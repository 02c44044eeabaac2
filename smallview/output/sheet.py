"""The contact sheet: what the network will see, what was drawn for it, and which masks it came from, for human eyes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from smallview.errors import SmallviewError, UsageError
from smallview.files import check_folder, write_bytes
from smallview.records import Batch, Foregrounds, Pictures
from smallview.seeds import generator
from smallview.settings.fitting import printable
from smallview.views.making import ViewMaker
from smallview.views.sampling import Mode, ViewParameters, centre
from smallview.views.view import View

GAP, HEAD, SIDE = 4, 18, 144
LINES, LINE, LETTER = 5, 12, 10
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
LEAST_BLUR = 0.25  # pixels; fast views leave out a blur that is no wider
# name, word, how it is written, where it does nothing; in the order of ViewParameters.order
_OPS = (
    ("brightness", "bright", ".2f", 1.0),
    ("contrast", "contrast", ".2f", 1.0),
    ("saturation", "saturation", ".2f", 1.0),
    ("hue", "hue", "+.2f", 0.0),
)
PAPER, INK = (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture uint8 [S, S, C] with the words below it, after its name where it has one."""

    pixels: npt.NDArray[np.uint8]
    words: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True, eq=False)
class Grid:
    """The cells of a sheet by rows, the columns' titles, and all that was drawn as plain values, ready for JSON."""

    rows: list[list[Cell]]
    titles: list[str]
    drawn: dict[str, Any]


def view_grid(
    pictures: Pictures,
    views: Sequence[View],
    size: int,
    *,
    seed: int = 0,
    rows: int = 8,
    repeats: int = 4,
    foregrounds: Foregrounds | None = None,
    mode: Mode = "fast",
    mean: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> Grid:
    """A row for each of a few pictures: its centre, its foreground where there are masks, its views in `repeats` epochs.

    Views that change their size are shown from first to last. mean: the pictures' mean colour [C] in [0, 1], for backgrounds of it.
    names: of all pictures; each row begins with its own.
    """
    chosen = np.sort(generator(seed, "sheet").permutation(len(pictures))[:rows])
    heights, widths = pictures.heights[chosen], pictures.widths[chosen]
    colour, ones = np.array([0.0] * pictures.channels if mean is None else mean, np.float32), [1.0] * pictures.channels
    maker = ViewMaker(pictures, views, size, list(colour), ones, seed, foregrounds=foregrounds, mode=mode)
    boxes = centre(heights, widths, 1.0)
    whole = maker.crop(chosen, boxes, np.zeros(len(chosen), np.bool_), size)
    shown = [""] * len(chosen) if names is None else [names[int(i)] for i in chosen]
    wholes = _bytes(whole.permute(0, 2, 3, 1).numpy())
    columns = [[Cell(cell, name=name) for cell, name in zip(wholes, shown, strict=True)]]
    titles = ["picture"]
    if foregrounds is not None:
        titles.append("foreground")
        columns.append([_mask_cell(foregrounds, int(i), pictures, box, size) for i, box in zip(chosen, boxes, strict=True)])
    drawn: list[dict[str, Any]] = []
    for epoch in range(repeats):
        batch = Batch(chosen, epoch, epoch, epoch / max(1, repeats - 1))
        parameters = maker.draw(batch)
        for v, (view, made, p) in enumerate(zip(views, maker.make(chosen, parameters), parameters, strict=True)):
            cells = _bytes(made.images.permute(0, 2, 3, 1).numpy() + colour)
            area = heights.astype(np.float64) * widths
            cut = np.zeros(len(chosen), np.bool_) if foregrounds is None else p.masked & foregrounds.usable[chosen]
            columns.append(
                [
                    Cell(cell, told(view, p, k, float(area[k]), bool(cut[k]), channels=pictures.channels, mode=mode))
                    for k, cell in enumerate(cells)
                ]
            )
            seen = "" if view.seen_by == "both" else f" {view.seen_by}"
            # counted from 0, as in method.views.0 and in the numbers of --json
            titles.append(f"view {v}{seen}, {p.size} px" + f", draw {epoch + 1}" * (repeats > 1))
            drawn.append({"epoch": epoch, "view": v, "seen_by": view.seen_by, **plain(p)})
    sizes = {"heights": heights.tolist(), "widths": widths.tolist()}
    masks = {} if foregrounds is None else {"usable": foregrounds.usable[chosen].tolist()}
    return Grid(
        [list(row) for row in zip(*columns, strict=True)],
        titles,
        {"pictures": chosen.tolist(), **sizes, **masks, "views": drawn},
    )


def plain(p: ViewParameters) -> dict[str, Any]:
    """All drawn parameters of a view as numbers and lists."""
    values = {field.name: getattr(p, field.name) for field in fields(p)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def told(
    view: View, p: ViewParameters, k: int, area: float, masked: bool, *, channels: int = 3, mode: Mode = "fast"
) -> tuple[str, ...]:
    """What was done to picture k of a view, in a few words each; what changes nothing goes without saying. area: pixels of the picture.

    The colour ops stand in the order in which they were done, where it matters (parity).

    Example:
        >>> from smallview.views.sampling import neutral
        >>> told(View(), neutral(np.array([[0.0, 0.0, 10.0, 5.0]]), np.array([True]), 8), 0, 100.0, masked=False)
        ('50 % of area', 'ratio 0.50', 'flip')
    """
    height, width = p.box[k, 2:]
    coloured = channels == 3
    words = ["masked"] * masked  # first, so that no number of words cuts it off
    words += [f"{100 * height * width / area:.0f} % of area", f"ratio {width / height:.2f}"]
    words += ["flip"] * bool(p.flip[k])
    gray = coloured and bool(p.grayscale[k])
    # fast views are one map: in gray nothing is left of saturation and hue
    ops = _OPS if coloured and not (gray and mode == "fast") else _OPS[:2]
    for op in p.order[k] if mode == "parity" else range(4):
        if op < len(ops):
            name, short, form, idle = ops[op]
            words += [f"{short} {getattr(p, name)[k]:{form}}"] * bool(getattr(p, name)[k] != idle)
    words += ["gray"] * gray
    words += [f"blur {p.blur_sigma[k]:.2f} px"] * bool(p.blur_sigma[k] > (LEAST_BLUR if mode == "fast" else 0.0))
    words += ["solarized"] * bool(p.solarize[k])
    words += [f"noise {view.noise:g}"] * bool(view.noise > 0.0)
    return tuple(words)


def _bytes(images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.asarray(np.rint(np.clip(images, 0.0, 1.0) * 255.0), np.uint8)


def _mask_cell(found: Foregrounds, i: int, pictures: Pictures, box: npt.NDArray[np.float64], size: int) -> Cell:
    """The foreground of picture i, white, cut as the picture beside it is."""
    if not found.usable[i]:
        return Cell(np.full((size, size, 1), 210, np.uint8), ("no usable foreground:", "stays whole"))
    height, width = int(pictures.heights[i]), int(pictures.widths[i])
    bits = found.bits[found.starts[i] : found.starts[i] + -(-height * width // 8)]
    mask = np.unpackbits(bits, count=height * width).reshape(height, width)
    top, left, tall, wide = box
    image = Image.fromarray(mask * np.uint8(255))
    cut = image.resize((size, size), Image.Resampling.BOX, (left, top, left + wide, top + tall))
    return Cell(np.asarray(cut)[..., None], (f"{100 * mask.mean():.0f} % of area",))


def check_sheet(out: str | Path) -> None:
    """Tells of a sheet that could not be written before its views are made.

    Raises:
        UsageError: an ending that is no picture's. SmallviewError: a folder that cannot be written.
    """
    path = Path(out)
    if path.suffix.lower() not in ENDINGS or path.is_dir():
        raise UsageError(f'--out is "{path}"; wanted a picture file ending in {", ".join(ENDINGS[:-1])} or {ENDINGS[-1]}')
    check_folder(path.parent)


def contact_sheet(grid: Grid, out: str | Path, *, side: int = SIDE) -> Path:
    """Write a grid as an image file; every picture is shown `side` pixels wide, with its words below.

    Raises:
        SmallviewError: a file that cannot be written, or an ending that is no picture's.
    """
    step = side + GAP, side + GAP + LINES * LINE
    sheet = Image.new("RGB", (len(grid.titles) * step[0] + GAP, len(grid.rows) * step[1] + GAP + HEAD), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LETTER)
    for i, title in enumerate(grid.titles):
        pen.text((GAP + i * step[0], 3), title, fill=INK, font=font)
    for r, line in enumerate(grid.rows):
        for c, cell in enumerate(line):
            left, top = GAP + c * step[0], HEAD + GAP + r * step[1]
            shown = cell.pixels[:, :, 0] if cell.pixels.shape[2] in (1, 2) else cell.pixels[:, :, :3]
            image = Image.fromarray(shown).convert("RGB")
            kind = Image.Resampling.NEAREST if side >= image.width else Image.Resampling.BILINEAR
            sheet.paste(image.resize((side, side), kind), (left, top))
            named = [name_line(cell.name, side, font)] if cell.name else []
            for n, text in enumerate([*named, *lines_of(cell.words, side, font)][:LINES]):
                pen.text((left, top + side + n * LINE), text, fill=INK, font=font)
    return save_sheet(sheet, out)


def save_sheet(sheet: Image.Image, out: str | Path) -> Path:
    """Write a sheet as the image file that its ending names, whole or not at all.

    Raises:
        SmallviewError: a file that cannot be written, or an ending that is no picture's.
    """
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        sheet.save(file, Image.registered_extensions()[path.suffix.lower()])
        write_bytes(path, file.getvalue())
    except (OSError, ValueError, KeyError) as error:
        raise SmallviewError(f"cannot write {path}: {error}; choose another --out ending in .png, .jpg or .webp") from error
    return path


def name_line(name: str, side: int, font: Any) -> str:
    """The end of a file's name that fits below a picture, printable: names in one folder begin alike."""
    missing = bytes(font.getmask("\uffff"))
    written = (c if c.isascii() or bytes(font.getmask(c)) != missing else ascii(c)[1:-1] for c in printable(name))
    text = "".join(written)
    if font.getlength(text) <= side:
        return text
    text = text[-side:]  # a letter is a pixel wide at least
    while font.getlength(f"...{text}") > side:
        text = text[1:]
    return f"...{text}"


def lines_of(words: Sequence[str], side: int, font: Any, between: str = ", ") -> list[str]:
    """The words in lines that fit below a picture."""
    lines: list[str] = []
    for word in words:
        longer = f"{lines[-1]}{between}{word}" if lines else word
        if lines and font.getlength(longer) <= side:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines[:LINES]
