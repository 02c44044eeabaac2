"""Many small pictures as one JPEG within the page, and the elements that each show one of them."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from smallview.output.markup import Markup, escaped, tag

Pixels = npt.NDArray[np.uint8]
SIDES = (64, 48, 40, 32, 24, 16, 8)  # pixels; whole 8 x 8 blocks, so that neighbours do not bleed into each other
QUALITIES = (85, 65, 45)
# where a picture also shows: beside a point of the map of these sprites, and in its place
ON_MAP = ("-map .p:hover::after", "-map .p:focus::after", "-map .as:checked~.map .p")
MOST_SIDE = 16_000  # pixels of a sheet that every browser still shows


@dataclass(frozen=True, eq=False)
class Sprites:
    """A sheet of N pictures, called by a plain word: `css` puts it behind elements of its class; `of(i)` says which place one of them shows."""

    name: str
    css: Markup
    columns: int
    rows: int

    def of(self, i: int) -> Markup:
        """The style of an element that shows picture i: its place as shares of the sheet, so that it may be of any size."""
        return Markup(f"--x:{i % self.columns};--y:{i // self.columns}")

    def show(self, i: int, alt: str, class_: str = "") -> Markup:
        """Picture i as an element of its own."""
        return tag("span", role="img", aria_label=alt, style=self.of(i), class_=f"t {self.name} {class_}".rstrip())


def square(pixels: Pixels, side: int) -> Pixels:
    """The centre square of a picture uint8 [H, W, C], made `side` pixels wide, in colour [side, side, 3].

    Example:
        >>> square(np.zeros((20, 10, 1), np.uint8), 8).shape
        (8, 8, 3)
    """
    height, width, channels = pixels.shape
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    cut = pixels[top : top + short, left : left + short]
    image = Image.fromarray(np.ascontiguousarray(cut[:, :, 0] if channels in (1, 2) else cut[:, :, :3])).convert("RGB")
    kind = Image.Resampling.NEAREST if side >= short else Image.Resampling.BOX
    return np.asarray(image.resize((side, side), kind))


def sheet_of(name: str, count: int, picture: Callable[[int], Pixels], most_bytes: int, most_side: int = 64) -> Sprites:
    """Pictures 0 to count - 1 on one sheet of at most `most_bytes` in the page, as large and as fine as that allows.

    picture(i) gives uint8 [H, W, C]. most_side: of the pictures on the sheet; no larger than the pictures are.
    """
    columns = max(1, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    short = min(min(picture(i).shape[:2]) for i in range(0, count, max(1, count // 16)))
    wanted = min(most_side, 8 * math.ceil(short / 8))
    fitting = [side for side in SIDES if side <= wanted and side * columns <= MOST_SIDE] or [8]
    encoded = b""
    drawn: tuple[int, Image.Image] | None = None
    for side, quality in itertools.product(fitting, QUALITIES):
        if drawn is None or drawn[0] != side:
            canvas = np.full((rows * side, columns * side, 3), 128, np.uint8)
            for i in range(count):
                top, left = i // columns * side, i % columns * side
                canvas[top : top + side, left : left + side] = square(picture(i), side)
            drawn = side, Image.fromarray(canvas)
        file = io.BytesIO()
        drawn[1].save(file, "JPEG", quality=quality, subsampling=0)  # `optimize` wants a buffer that noise overflows
        encoded = base64.b64encode(file.getvalue())
        if len(encoded) <= most_bytes:
            break
    assert drawn is not None, "SIDES is not empty"
    crisp = "image-rendering:pixelated;" if drawn[0] <= 32 else ""
    shown = ",".join(f".{name}{where}" for where in ("", *ON_MAP))
    css = Markup(
        f"{escaped(shown)}{{--columns:{columns};--rows:{rows};{crisp}"
        f"background-image:url(data:image/jpeg;base64,{encoded.decode('ascii')})}}"
    )
    return Sprites(name, css, columns, rows)


def thumbs(sprites: Sprites, chosen: Sequence[int], alts: Sequence[str], below: Sequence[Markup] | None = None) -> list[Markup]:
    """List items that each show one picture with words below it."""
    words: Sequence[Markup | None] = below or [None] * len(chosen)
    return [
        tag("li", sprites.show(i, alt), None if text is None else tag("span", text, class_="name"))
        for i, alt, text in zip(chosen, alts, words, strict=True)
    ]
