"""Pictures sent to a device: odd sizes in groups, masks without a bit, and what a fork leaves of the kernel's threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from smallview.errors import UsageError
from smallview.records import Batch, Foregrounds
from smallview.views.device import MOST_PADDING, DevicePictures
from smallview.views.making import ViewMaker
from smallview.views.view import View

ODD = [(1, 300, 3), (300, 1, 3), (20, 20, 3), (2, 280, 3), (280, 2, 3), (21, 19, 3)]


def test_no_padding_to_the_tallest_and_the_widest(packed: Callable[..., Any]) -> None:
    pictures = packed(ODD)
    sent = DevicePictures(pictures, torch.device("cpu"))
    groups = sent.groups(np.arange(6))
    assert sorted(np.concatenate(groups).tolist()) == list(range(6)) and len(groups) > 1
    for rows in groups:
        area = (pictures.heights[rows].astype(int) * pictures.widths[rows]).sum()
        assert len(rows) * pictures.heights[rows].max() * pictures.widths[rows].max() <= MOST_PADDING * area
    assert len(sent.groups(np.array([2, 5, 2]))) == 1 and len(sent.groups(np.empty(0, np.int64))) == 1


def test_groups_change_no_view(packed: Callable[..., Any]) -> None:
    pictures, views = packed(ODD), [View(), View(size=12, noise=0.1)]
    batch = Batch(np.array([5, 0, 3, 1, 4, 2]), epoch=2, step=0)
    made = {e: ViewMaker(pictures, views, 16, [0.0] * 3, [1.0] * 3, 1, executor=e)(batch) for e in ("kernel", "torch")}
    for a, b in zip(made["kernel"], made["torch"], strict=True):
        torch.testing.assert_close(a.images, b.images, atol=0.02 / 255, rtol=0.0)


@pytest.mark.parametrize("executor", ["kernel", "torch"])
def test_masks_that_found_nothing_leave_the_pictures_whole(packed: Callable[..., Any], executor: Any) -> None:
    pictures, batch = packed([(9, 9, 3)] * 4), Batch(np.arange(4), 0, 0)
    nothing = Foregrounds(np.empty(0, np.uint8), np.zeros(4, np.int64), np.zeros(4, np.bool_), "")
    view = View(mask_background=1.0)
    masked = ViewMaker(pictures, [view], 8, [0.0] * 3, [1.0] * 3, 0, foregrounds=nothing, executor=executor)
    whole = ViewMaker(pictures, [replace(view, mask_background=0.0)], 8, [0.0] * 3, [1.0] * 3, 0, executor=executor)
    assert torch.equal(masked(batch)[0].images, whole(batch)[0].images)


def test_rows_of_parameters(packed: Callable[..., Any]) -> None:
    (drawn,) = ViewMaker(packed([(9, 9, 3)] * 4), [View()], 8, [0.0] * 3, [1.0] * 3, 0).draw(Batch(np.arange(4), 0, 0))
    some = drawn.take(np.array([3, 1]))
    for f in fields(drawn):
        if f.name != "size":
            np.testing.assert_array_equal(getattr(some, f.name), getattr(drawn, f.name)[[3, 1]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("executor", ["kernel", "torch"])
def test_boxes_that_are_no_numbers_are_refused(packed: Callable[..., Any], bad: float, executor: Any) -> None:
    maker = ViewMaker(packed([(9, 9, 3)]), [View()], 8, [0.0] * 3, [1.0] * 3, 0, executor=executor)
    (drawn,) = maker.draw(Batch(np.arange(1), 0, 0))
    with pytest.raises(UsageError, match="boxes of view 0 hold numbers that are not finite; wanted"):
        maker.make(np.arange(1), [replace(drawn, box=np.array([[0.0, 0.0, bad, 4.0]]))])


def test_a_box_far_larger_than_its_picture_takes_no_more_memory(packed: Callable[..., Any]) -> None:
    pictures = packed([(9, 9, 3)])
    box = np.array([[-1e9, -1e9, 2e9, 2e9]])
    made = [
        ViewMaker(pictures, [View()], 8, [0.0] * 3, [1.0] * 3, 0, executor=e).crop(np.arange(1), box, np.zeros(1, bool), 8)
        for e in ("kernel", "torch")
    ]
    torch.testing.assert_close(made[0], made[1], atol=1e-3, rtol=0.0)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_the_threads_work_after_a_fork(packed: Callable[..., Any]) -> None:
    maker = ViewMaker(packed([(9, 9, 3)] * 4), [View()], 8, [0.0] * 3, [1.0] * 3, 0, threads=2)
    before = maker(Batch(np.arange(4), 0, 0))[0].images
    child = os.fork()
    if child == 0:
        same = bool((maker(Batch(np.arange(4), 0, 0))[0].images == before).all())
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
