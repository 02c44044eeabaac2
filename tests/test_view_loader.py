"""ViewLoader: the views of a run, for anyone's loop."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import smallview as sv
from smallview.data.loading import epoch_order
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.errors import UsageError
from smallview.records import Batch
from smallview.schedules import Ramp
from smallview.views.making import ViewMaker

PICTURES = np.random.default_rng(0).integers(0, 256, (10, 9, 8, 3), np.uint8)
VIEWS = (sv.View(), sv.View(size=0.5, blur=0.0))


def test_an_epoch_is_that_of_a_run_with_its_seed() -> None:
    loader = sv.ViewLoader(PICTURES, VIEWS, batch_size=4, seed=3, threads=1, mean=(0.1, 0.2, 0.3), std=0.5)
    assert (len(loader), loader.size, loader.channels) == (2, 8, 3)
    maker = ViewMaker(open_pack(open_source(PICTURES), short_side=None), VIEWS, 8, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), seed=3)
    for epoch in (0, 1):
        order = epoch_order(10, 3, epoch)
        for step, made in enumerate(loader):
            wanted = maker(Batch(order[4 * step : 4 * step + 4], epoch, step))
            assert [tuple(view.shape) for view in made] == [(4, 3, 8, 8), (4, 3, 4, 4)]
            for one, other in zip(made, wanted, strict=True):
                assert torch.equal(one, other.images)


def test_batches_stay_what_they_were_and_the_epoch_can_be_set() -> None:
    loader = sv.ViewLoader(PICTURES, batch_size=2, threads=1)
    kept = [first for first, _ in loader]
    copies = [view.clone() for view in kept]
    later = [first for first, _ in loader]
    assert all(map(torch.equal, kept, copies)) and not torch.equal(kept[0], later[0])
    loader.epoch = 0
    assert all(map(torch.equal, kept, (first for first, _ in loader)))


def test_a_loop_that_breaks_off_leaves_no_thread() -> None:
    before = threading.active_count()
    for _ in sv.ViewLoader(PICTURES, batch_size=2, threads=1):
        break
    assert threading.active_count() == before


def test_views_follow_the_progress_of_so_many_epochs() -> None:
    loader = sv.ViewLoader(
        PICTURES, (sv.View(size=Ramp(0.5, 1.0, until=1.0)),) * 2, size=16, batch_size=10, epochs=3, threads=1
    )
    assert [first.shape[-1] for _ in range(3) for first, _ in loader] == [8, 10, 14]
    with pytest.raises(UsageError, match="epoch 4 of 3; wanted epochs=4"):
        iter(loader)


def test_what_cannot_be_meant_is_told() -> None:
    with pytest.raises(UsageError, match="batch_size is 11 and there are 10 pictures"):
        sv.ViewLoader(PICTURES, batch_size=11)
    with pytest.raises(UsageError, match="masks the background"):
        sv.ViewLoader(PICTURES, (sv.View(mask_background=0.1),) * 2, batch_size=2)


def test_a_module_of_gray_pictures_is_fed_gray_ones() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    assert sv.embed(net, PICTURES[..., 0], size=8).shape == (10, 4)
