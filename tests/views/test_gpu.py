"""Views on a CUDA device: left out where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from smallview.records import Batch
from smallview.views.making import ViewMaker
from smallview.views.view import View

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("mode", ["fast", "parity"])
def test_the_device_makes_the_views_that_the_cpu_makes(packed: Callable[..., Any], keep: bool, mode: Any) -> None:
    pictures = packed([(40, 48, 3)] * 12)
    views = [View(), View(size=24, blur=1.0, blur_sigma=(8.0, 12.0), solarize=0.5, noise=0.1)]
    batch = Batch(np.arange(12), epoch=1, step=0)
    here = ViewMaker(pictures, views, 32, [0.5] * 3, [0.25] * 3, seed=0, mode=mode)(batch)
    there = ViewMaker(pictures, views, 32, [0.5] * 3, [0.25] * 3, 0, "cuda", mode=mode, keep=keep)(batch)
    for a, b in zip(here, there, strict=True):
        assert b.images.is_cuda
        assert float((a.images - b.images.cpu()).abs().quantile(0.999)) * 0.25 <= 2 / 255


def test_pictures_of_many_sizes_are_sent_as_they_are(packed: Callable[..., Any]) -> None:
    pictures = packed([(20, 61, 3), (40, 17, 3), (1, 1, 3), (90, 90, 3)])
    batch = Batch(np.arange(4), epoch=0, step=0)
    here = ViewMaker(pictures, [View()], 32, [0.0] * 3, [1.0] * 3, seed=0)(batch)[0].images
    there = ViewMaker(pictures, [View()], 32, [0.0] * 3, [1.0] * 3, 0, "cuda")(batch)[0].images
    assert torch.allclose(here, there.cpu(), atol=2 / 255)
