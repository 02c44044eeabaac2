"""Labels beside a training: honest splits, and nothing touched."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.errors import DataError
from smallview.evaluation.features import weights_hash
from smallview.networks.encoders import EncoderConfig
from smallview.training import online
from smallview.training.online import OnlineLabels, OnlineSet, judged

CPU = torch.device("cpu")


def features_of(index: np.ndarray, labels: np.ndarray, noise: float = 0.1) -> torch.Tensor:
    """Features that tell the class, and nothing else that two views of a picture would share."""
    source = torch.Generator().manual_seed(int(index.sum()))
    return nn.functional.one_hot(torch.from_numpy(labels[index].clip(0)), 4).float() + noise * torch.randn(
        len(index), 4, generator=source
    )


def steps(online: OnlineLabels, labels: np.ndarray, count: int, batch: int = 8, seed: int = 0) -> None:
    order = np.random.default_rng(seed)
    for _ in range(count):
        index = order.choice(len(labels), batch, replace=False)
        online.keep(index, features_of(index, labels))


def test_features_that_tell_the_class_are_seen_to() -> None:
    labels = np.arange(80) % 4
    watched = OnlineLabels(labels, 4, batch_size=8)
    assert watched.look() == {}
    steps(watched, labels, 30)
    found = watched.look()
    assert found["online/ridge"] > 95 and found["online/knn"] > 95 and 5 <= found["online/pictures"] <= 20


def test_no_picture_is_fitted_on_and_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that name the picture and not its class: by what was seen of a picture, its label could be looked up."""
    labels = np.random.default_rng(5).integers(0, 2, 64)
    seen: list[tuple[set[int], set[int]]] = []

    def spy(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, t: torch.Tensor, classes: int) -> dict[str, float]:
        seen.append((set(x.argmax(1).tolist()), set(z.argmax(1).tolist())))
        return judged(x, y, z, t, classes)

    monkeypatch.setattr(online, "judged", spy)
    watched = OnlineLabels(labels, 2, batch_size=16)
    order = np.random.default_rng(0)
    scores = []
    for _ in range(12):
        for _ in range(20):
            index = order.choice(64, 16, replace=False)
            watched.keep(index, torch.eye(64)[torch.from_numpy(index)])
        scores.append(watched.look()["online/knn"])
    assert all(not fitted & tested and len(fitted) >= 40 and len(tested) >= 10 for fitted, tested in seen)
    assert 20 < np.mean(scores) < 80  # looked up, they would all be right


def test_the_newest_features_are_tested_and_old_ones_forgotten() -> None:
    labels = np.arange(400) % 4
    watched = OnlineLabels(labels, 4, batch_size=8)
    for _ in range(300):  # by now far more than are kept
        watched.keep(np.arange(8), torch.full((8, 4), float("nan")))
    steps(watched, labels, 256)
    assert watched.look()["online/ridge"] > 95


def test_pictures_without_labels_take_no_part() -> None:
    labels = np.where(np.arange(80) < 40, np.arange(80) % 4, -1)
    watched = OnlineLabels(labels, 4, batch_size=8)
    steps(watched, labels, 40)
    assert watched.look()["online/ridge"] > 95
    none = OnlineLabels(np.full(80, -1), 4, batch_size=8)
    steps(none, np.zeros(80, np.int64), 40)
    assert none.look() == {}


@pytest.mark.parametrize("batch", [300, 1024, 5000])
def test_what_is_kept_is_bounded_for_every_batch_and_holds_no_other_view(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(20_000) % 4
    watched = OnlineLabels(labels, 4, batch_size=batch)
    order = np.random.default_rng(0)
    for step in range(9):
        index = order.choice(len(labels), batch, replace=False)
        both_views = torch.cat([features_of(index, labels), torch.zeros(batch, 4)])
        both_views[:batch, 3] += 100.0 * step
        watched.keep(index, both_views.split(batch)[0])
        both_views.fill_(float("nan"))  # what was kept is its own
    sizes: list[int] = []
    steps_seen: set[int] = set()

    def spy(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, t: torch.Tensor, classes: int) -> dict[str, float]:
        sizes.append(len(x) + len(z))
        steps_seen.update((x[:, 3] / 100).round().int().tolist())
        return {}

    monkeypatch.setattr(online, "judged", spy)
    watched.look()
    assert 1000 <= sizes[0] <= 2048 and len(steps_seen) >= 2  # fitted on an earlier step too
    assert sum(kept.untyped_storage().nbytes() for _, kept in watched._kept) <= 2048 * 4 * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_give_no_figure(bad: float) -> None:
    labels = np.arange(80) % 4
    watched = OnlineLabels(labels, 4, batch_size=8)
    steps(watched, labels, 30)
    watched.keep(np.arange(8), torch.full((8, 4), bad))
    assert watched.look() == {}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.body[1].eval()  # frozen by its owner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(images).mean((2, 3))
        return out


def test_a_labeled_set_is_judged_and_the_encoder_is_as_it_was() -> None:
    labels = np.arange(120) % 3
    images = np.random.default_rng(0).integers(0, 60, (120, 8, 8, 3), dtype=np.uint8)
    images[np.arange(120), :, :, labels] += 150
    pack = open_pack(open_source(images), short_side=None)
    config = EncoderConfig("custom:Net", "standard", 3, 8, 8, (0.5,) * 3, (0.25,) * 3)
    watched = OnlineSet(pack, labels, 3, config, batch_size=16, seed=0)
    assert len(watched.y) == 96 and len(watched.test) == 32 and not set(watched.train.tolist()) & set(watched.test.tolist())
    assert np.bincount(watched.y[watched.test].numpy()).min() >= 9  # every class alike
    net = Net()
    before, modes, state = weights_hash(net), [m.training for m in net.modules()], torch.get_rng_state()
    first = watched.look(net, CPU, torch.contiguous_format, nullcontext())
    assert first == watched.look(net, CPU, torch.channels_last, nullcontext())
    assert first["online/ridge"] > 90 and first["online/pictures"] == 32
    assert weights_hash(net) == before and [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert "64 labeled pictures, tested on 32 others" in watched.protocol


def test_the_views_of_a_labeled_set_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(120) % 3
    pack = open_pack(open_source(np.zeros((120, 8, 8, 3), np.uint8)), short_side=None)
    config = EncoderConfig("custom:Net", "standard", 3, 8, 8, (0.5,) * 3, (0.25,) * 3)
    one = 4 * 3 * 8 * 8
    for most, count in ((60 * one, 60), (0, 6), (2**29, 96)):
        monkeypatch.setattr(online, "MOST_BYTES", most)
        watched = OnlineSet(pack, labels, 3, config, batch_size=16, seed=0)
        assert len(watched.y) == len(watched.views) == count


def test_pictures_of_a_labeled_set_without_labels_take_no_part() -> None:
    labels = np.where(np.arange(120) < 60, np.arange(120) % 3, -1)
    pack = open_pack(open_source(np.zeros((120, 8, 8, 3), np.uint8)), short_side=None)
    config = EncoderConfig("custom:Net", "standard", 3, 8, 8, (0.5,) * 3, (0.25,) * 3)
    watched = OnlineSet(pack, labels, 3, config, batch_size=16, seed=0)
    assert len(watched.y) == len(watched.views) == 60 and torch.bincount(watched.y).tolist() == [20, 20, 20]
    assert watched.look(Net(), CPU, torch.contiguous_format, nullcontext())["online/pictures"] == len(watched.test)
    with pytest.raises(DataError, match="all 120 labels of the labeled set are under 0"):
        OnlineSet(pack, np.full(120, -1), 0, config, batch_size=16, seed=0)
