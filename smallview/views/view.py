"""Views as values: crop size and scale, disturbances, and who sees them."""

from __future__ import annotations

from dataclasses import dataclass

from smallview.records import SeenBy


@dataclass(frozen=True)
class View:
    """One disturbed crop of a picture. Every field is neutral at 0 except the crop's scale and ratio.

    size: side in pixels, None for the size of the run. scale: part of the picture's area that the crop covers. ratio: width
    over height. jitter, grayscale, blur, solarize, flip: probabilities. brightness, contrast, saturation: factors are drawn
    from [1 - x, 1 + x], never under 0; hue: turns of the colour circle from [-x, x]. blur_sigma: pixels at a 224-pixel view, scaled with the
    size, so that a 32-pixel view is hardly blurred. noise: standard deviation on pixels in [0, 1].

    Source: the defaults are SimCLR's views (Chen et al., 2020, appendix A) with MoCo v2's strengths and crop area.

    Raises:
        ValueError: a number outside its range, named.

    Example:
        >>> View(flip=0.0).flip
        0.0
    """

    size: int | None = None
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: float = 0.5
    noise: float = 0.0
    seen_by: SeenBy = "both"

    def __post_init__(self) -> None:
        if self.size is not None and not 4 <= self.size <= 1024:
            raise ValueError(f"size is {self.size}; wanted 4 to 1024 pixels")
        for name in ("flip", "jitter", "grayscale", "blur", "solarize", "solarize_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted a number from 0 to 1")
        for name in ("brightness", "contrast", "saturation", "noise"):
            if not 0.0 <= getattr(self, name) <= 10.0:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted a number from 0 to 10")
        if not 0.0 <= self.hue <= 0.5:
            raise ValueError(f"hue is {self.hue}; wanted a number from 0 to 0.5 turns")
        if not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(f"scale is {self.scale}; wanted (smallest, largest) part of the area, within 0 to 1")
        if not 0.05 <= self.ratio[0] <= self.ratio[1] <= 20.0:
            raise ValueError(f"ratio is {self.ratio}; wanted (narrowest, widest) width over height, within 0.05 to 20")
        if not 0.0 <= self.blur_sigma[0] <= self.blur_sigma[1] <= 50.0:
            raise ValueError(f"blur_sigma is {self.blur_sigma}; wanted (smallest, largest), within 0 to 50")
        if self.seen_by not in ("both", "online", "target"):
            raise ValueError(f"seen_by is {self.seen_by!r}; wanted both, online or target")
