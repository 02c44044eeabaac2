from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallview.data.loading import batches, channel_statistics, epoch_order, share
from smallview.data.pack import Pack
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.errors import UsageError
from smallview.records import Batch


def _pack(images: np.ndarray) -> Pack:
    return open_pack(open_source(images), short_side=None)


@given(st.integers(1, 500), st.integers(0, 2**40), st.integers(0, 1000))
def test_epoch_order_is_a_permutation_of_its_own(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch)
    assert order.dtype == np.int64 and sorted(order) == list(range(n))
    assert np.array_equal(order, epoch_order(n, seed, epoch))
    if n > 50:
        assert not np.array_equal(order, epoch_order(n, seed, epoch + 1))
        assert not np.array_equal(order, epoch_order(n, seed + 1, epoch))


@given(st.integers(1, 60), st.data())
def test_batches_are_the_same_from_any_start(n: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, n))
    stop = data.draw(st.integers(0, 40))
    start = data.draw(st.integers(0, stop))
    through = list(batches(n, size, 3, 0, stop))
    resumed = list(batches(n, size, 3, start, stop))
    assert [batch.step for batch in resumed] == list(range(start, stop))
    for one, two in zip(through[start:], resumed, strict=True):
        assert one.step == two.step and one.epoch == two.epoch and np.array_equal(one.index, two.index)
    per_epoch = n // size
    for batch in through:
        assert batch.epoch == batch.step // per_epoch and len(batch.index) == size and batch.index.dtype == np.int64
    for epoch in range(stop // per_epoch):
        served = np.concatenate([batch.index for batch in through if batch.epoch == epoch])
        assert len(set(served)) == per_epoch * size


def test_progress_is_the_part_of_all_steps_that_is_done() -> None:
    assert [batch.progress for batch in batches(10, 4, 0, 3, 6, total_steps=8)] == [3 / 8, 4 / 8, 5 / 8]
    assert [batch.progress for batch in batches(10, 4, 0, 3, 6)] == [0.0] * 3
    with pytest.raises(UsageError, match="steps to 6 of 5 in all"):
        batches(10, 4, 0, 3, 6, total_steps=5)


def test_a_batch_that_cannot_be_filled_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="batch size 11 with 10 pictures; wanted 1 to 10"):
        batches(10, 11, 0, 0, 5)
    with pytest.raises(UsageError):
        batches(10, 0, 0, 0, 5)
    with pytest.raises(UsageError, match="start step -1"):
        batches(10, 2, 0, -1, 5)


def test_statistics_are_those_of_the_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 200, (30, 8, 9, 3), np.uint8)
    mean, deviation = channel_statistics(_pack(images), seed=0)
    assert np.allclose(mean, images.mean((0, 1, 2)) / 255) and np.allclose(deviation, images.std((0, 1, 2)) / 255)
    some = channel_statistics(_pack(images), seed=0, most=7)
    assert np.array_equal(some, channel_statistics(_pack(images), seed=0, most=7))
    assert not np.array_equal(some[0], channel_statistics(_pack(images), seed=1, most=7)[0])


def test_every_picture_counts_the_same() -> None:
    source = open_source([np.zeros((100, 100, 1), np.uint8), np.full((2, 2, 1), 255, np.uint8)])
    mean, deviation = channel_statistics(open_pack(source, short_side=None), seed=0)
    assert np.allclose(mean, [0.5]) and np.allclose(deviation, [0.5])


def test_flat_pictures_can_be_normalised() -> None:
    mean, deviation = channel_statistics(_pack(np.full((4, 8, 8, 2), 51, np.uint8)), seed=0)
    assert np.allclose(mean, 0.2) and np.array_equal(deviation, [1 / 255, 1 / 255])


def test_large_pictures_are_counted_in_pieces() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 1100, 1000), np.uint8)
    mean, deviation = channel_statistics(_pack(image), seed=0)
    assert np.allclose(mean, image.mean() / 255) and np.allclose(deviation, image.std() / 255)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_processes_share_each_batch_and_together_see_what_one_process_sees(world: int) -> None:
    whole = list(batches(103, 20, seed=3, start_step=0, stop_step=10))
    for batch in whole:
        parts = [share(batch, rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate([part.index for part in parts]), batch.index)
        assert {(part.epoch, part.step, part.progress) for part in parts} == {(batch.epoch, batch.step, batch.progress)}
        sizes = [len(part.index) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    first = np.concatenate([share(batch, rank, world).index for batch in whole[:5] for rank in range(world)])
    assert len(set(first.tolist())) == 100 and len(first) == 100  # an epoch: disjoint, and all but what does not fill a batch


@pytest.mark.parametrize(("rank", "world"), [(-1, 2), (2, 2), (0, 0)])
def test_a_process_that_is_not_there_is_refused(rank: int, world: int) -> None:
    with pytest.raises(UsageError, match=f"process {rank} of {world}; wanted"):
        share(Batch(np.arange(4), 0, 0), rank, world)
