"""Views on a CUDA device: left out where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from smallview.records import Batch
from smallview.views.making import ViewMaker
from smallview.views.streams import OnStream
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


@pytest.mark.parametrize("blur", [0.0, 0.5])
def test_a_recorded_batch_is_made_to_the_same_bits(packed: Callable[..., Any], blur: float) -> None:
    pictures = packed([(40, 48, 3)] * 12)
    views = [View(blur=blur, blur_sigma=(5.0, 9.0), solarize=0.2), View(size=24, jitter=0.0)]
    maker, plain = (ViewMaker(pictures, views, 32, [0.5] * 3, [0.25] * 3, 0, "cuda") for _ in range(2))
    assert maker.graphs is not None
    plain.graphs = None
    maker.record(12)
    for step in range(6):
        batch = Batch(np.arange(12)[:: 1 - 2 * (step % 2)] if step < 4 else np.arange(step), epoch=step, step=step)
        for a, b in zip(maker(batch), plain(batch), strict=True):
            assert torch.equal(a.images, b.images)
    assert len(maker.graphs._recorded) == 1


@pytest.mark.parametrize("size", [16, 33, 96])
def test_triton_makes_the_views_that_torch_makes(packed: Callable[..., Any], size: int) -> None:
    pictures = packed([(40, 48, 3)] * 12)
    views = [
        View(),
        View(jitter=1.0, hue=0.5, blur=0.7, blur_sigma=(5.0, 50.0)),
        View(blur=0.0, jitter=1.0, contrast=0.0, solarize=0.5, solarize_threshold=0.0),
        View(flip=1.0, noise=0.1, grayscale=1.0),
        View(size=24, scale=(0.01, 0.02)),
    ]
    batch = Batch(np.arange(12), epoch=1, step=0)
    plain = ViewMaker(pictures, views, size, [0.5] * 3, [0.25] * 3, 0, "cuda", executor="torch")
    few = ViewMaker(pictures, views, size, [0.5] * 3, [0.25] * 3, 0, "cuda", executor="triton")
    assert ViewMaker(pictures, views, size, [0.5] * 3, [0.25] * 3, 0, "cuda").executor == "triton"
    for a, b in zip(plain(batch), few(batch), strict=True):
        assert float((a.images - b.images).abs().max()) * 0.25 <= 0.5 / 255
    again = few(batch)
    assert few.graphs is None  # noise
    assert all(torch.equal(a.images, b.images) for a, b in zip(few(batch), again, strict=True))


def test_views_made_beside_a_step_are_the_same(packed: Callable[..., Any]) -> None:
    pictures = packed([(40, 48, 3)] * 64)
    maker = ViewMaker(pictures, [View(), View()], 32, [0.5] * 3, [0.25] * 3, 0, "cuda")
    order = [Batch(np.arange(64)[::step] if step % 2 else np.arange(64), epoch=step, step=step) for step in range(1, 20)]
    beside = OnStream(maker, 64, slots=4)
    big = torch.randn(4096, 4096, device="cuda")
    for batch in order:
        views = beside.take(beside.make(batch))
        sums = [view.images.double().sum() for view in views]
        big = torch.tanh(big @ big)
        del views  # its memory is free for the next views only when the sums are done
        for there, here in zip(sums, maker(batch), strict=True):
            assert float(there) == float(here.images.double().sum())
