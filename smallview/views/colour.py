"""Colour as one affine map per view: brightness, contrast, saturation, hue and grayscale in closed form.

Without clamps in between they commute, so no order is drawn. Hue turns the YIQ colour plane, so gray stays gray.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_BACK = np.linalg.inv(_YIQ)
LUMA = _YIQ[0]
# luma stays; the colour plane scales by the cosine part and turns by the sine part
MAPS = np.stack(
    [
        np.outer(_BACK[:, 0], _YIQ[0]),
        np.outer(_BACK[:, 1], _YIQ[1]) + np.outer(_BACK[:, 2], _YIQ[2]),
        np.outer(_BACK[:, 2], _YIQ[1]) - np.outer(_BACK[:, 1], _YIQ[2]),
    ]
)
Floats = npt.NDArray[np.float64]


def colour_maps(brightness: Floats, contrast: Floats, saturation: Floats, hue: Floats) -> tuple[Floats, Floats]:
    """(matrices [B, 3, 3], shares [B]): the new colour is matrix @ colour + share * (the crop's mean luma).

    In YIQ: brightness and contrast scale everything, saturation scales the colour plane (0: grayscale), hue, in turns, turns it, red
    towards yellow for hue above 0; contrast then moves towards the crop's mean gray.

    Example:
        >>> one = np.ones(1)
        >>> matrix, share = colour_maps(one, one, one, 0 * one)
        >>> bool(np.allclose(matrix[0], np.eye(3))), share.tolist()
        (True, [0.0])
    """
    angle = -2.0 * np.pi * hue
    cosine, sine = saturation * np.cos(angle), saturation * np.sin(angle)
    parts = np.stack([np.ones_like(hue), cosine, sine], 1)  # [B, 3]
    matrices = (brightness * contrast)[:, None, None] * np.einsum("bk,kij->bij", parts, MAPS)
    return matrices, (1.0 - contrast) * brightness
