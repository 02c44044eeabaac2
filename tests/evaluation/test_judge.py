"""Judging: the encoder stays what it is, the floors are others, the test labels decide nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smallview.errors import DataError, SmallviewError, UsageError
from smallview.evaluation import probes as module
from smallview.evaluation.bench import Labeled
from smallview.evaluation.features import (
    Judged,
    extract,
    pixel_side,
    raw_pixels,
    recalibrate,
    untrained_like,
    weights_hash,
)
from smallview.evaluation.judge import judge, match_classes, untrained
from smallview.evaluation.protocols import choose_protocols
from smallview.networks.encoders import build_encoder, describe

Make = Callable[..., Labeled]


class Small(nn.Module):
    def __init__(self, mode: str = "") -> None:
        super().__init__()
        self.mode = mode
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
        self.register_buffer("kept", torch.zeros(1))
        self.register_buffer("hidden", torch.zeros(1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.mode in ("kept", "hidden"):
            getattr(self, self.mode).add_(1.0)
        if self.mode == "weight":
            self.body[0].weight.data.mul_(1.001)
        out: Tensor = self.body(images).mean((2, 3))
        return out / 0.0 if self.mode == "broken" else out


def judged(mode: str = "", size: int = 8) -> Judged:
    torch.manual_seed(77)
    net = Small(mode)
    config = replace(describe(Small(), in_channels=3, size=size), mean=(0.5,) * 3, std=(0.25,) * 3)
    return Judged(net.eval(), config, "small", 0, {"steps": 5})


def test_rows_say_all_and_the_encoder_stays(labeled: Make) -> None:
    subject, train, test = judged(), labeled(60), labeled(30, seed=1)
    before = weights_hash(subject.encoder)
    rows = judge(subject, train, test)
    assert [row.metric for row in rows] == ["knn20 top-1 %", "knn200 top-1 %", "linear top-1 %"]
    for row in rows:
        assert row.floor_pixels is not None and row.floor_untrained is not None
        assert (row.n_train, row.n_test, row.seed, row.cost["steps"]) == (60, 30, 0, 5)
        assert row.settings["encoder_sha256"] == before
        for words in ("n=60", "n=30", "set 0", "set 1", "3 classes", "no augmentation", "raw pixels", "untrained encoder"):
            assert words in row.protocol
    assert weights_hash(subject.encoder) == before and not subject.encoder.training
    assert rows[0].settings["k"] == 20 and rows[1].settings["k"] == 60
    again = judge(judged(), train, test)
    assert [(r.value, r.floor_pixels, r.floor_untrained) for r in again] == [
        (r.value, r.floor_pixels, r.floor_untrained) for r in rows
    ]


@pytest.mark.parametrize("mode", ["kept", "hidden", "weight"])
def test_an_encoder_that_changes_while_judged_gets_no_row(labeled: Make, mode: str) -> None:
    with pytest.raises(SmallviewError, match="changed while it was judged"):
        judge(judged(mode), labeled(30), labeled(12, seed=1), ("knn",))


def test_features_that_are_not_finite_get_no_row(labeled: Make) -> None:
    with pytest.raises(SmallviewError, match="not finite"):
        judge(judged("broken"), labeled(30), labeled(12, seed=1), ("knn",))


def test_the_hash_sees_every_weight_and_buffer() -> None:
    net = Small()
    before = weights_hash(net)
    assert weights_hash(copy.deepcopy(net)) == before == weights_hash(net.to(memory_format=torch.channels_last))
    for change in (
        lambda n: n.kept.add_(1),
        lambda n: n.hidden.add_(1),
        lambda n: n.body[1].running_mean.add_(1e-7),
        lambda n: n.body[1].num_batches_tracked.add_(1),
        lambda n: n.body[0].weight.data[0, 0, 0].add_(1e-4),
        lambda n: n.double(),
    ):
        other = copy.deepcopy(net)
        change(other)
        assert weights_hash(other) != before


def test_test_labels_decide_nothing(labeled: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = []
    original = module.fit_linear

    def spy(*args: object, **options: object) -> object:
        probes.append(original(*args, **options))
        return probes[-1]

    monkeypatch.setattr(module, "fit_linear", spy)
    train, test = labeled(60), labeled(30, seed=1)
    shuffled = replace(test, labels=np.random.default_rng(0).permutation(test.labels))
    first, second = judge(judged(), train, test, ("linear",)), judge(judged(), train, shuffled, ("linear",))
    assert len(probes) == 6 and first[0].value != second[0].value
    for a, b in zip(probes[:3], probes[3:], strict=True):
        assert a.penalty == b.penalty and torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_floors_are_really_others(labeled: Make) -> None:
    subject, train = judged(), labeled(30)
    x = extract(subject.encoder, subject.config, train.pictures)
    fresh = untrained(subject, train.pictures, seed=0)
    assert weights_hash(fresh) != weights_hash(subject.encoder)
    assert not torch.equal(fresh.body[0].weight, subject.encoder.body[0].weight)
    floor = extract(fresh, subject.config, train.pictures)
    assert floor.shape == x.shape and float((floor - x).abs().max()) > 0.01
    again = untrained(subject, train.pictures, seed=0)
    assert weights_hash(again) == weights_hash(fresh) != weights_hash(untrained(subject, train.pictures, seed=1))
    net, config = build_encoder("dense_small", size=8, seed=5)
    named = Judged(net, replace(config, mean=(0.5,) * 3, std=(0.25,) * 3), "named", 0, {})
    before = weights_hash(net)
    assert weights_hash(untrained(named, train.pictures, seed=0)) != before == weights_hash(net)


def test_untrained_like_draws_from_its_seed_alone() -> None:
    net = Small()
    torch.manual_seed(1)
    a = untrained_like(net, 3)
    torch.manual_seed(2)
    b = untrained_like(net, 3)
    assert weights_hash(a) == weights_hash(b) != weights_hash(untrained_like(net, 4))


class Bare(nn.Module):
    """Weights of its own, which no `reset_parameters` knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(50.0).view(5, 10))
        self.attention = nn.MultiheadAttention(4, 1)
        for p in self.attention.parameters():
            nn.init.normal_(p)


def test_no_weight_of_an_untrained_floor_is_a_trained_one() -> None:
    net = Bare()
    fresh = untrained_like(net, 0)
    for (name, a), b in zip(net.named_parameters(), fresh.parameters(), strict=True):
        assert float((a == b).double().mean()) < 0.5, name
    assert torch.equal(fresh.weight.flatten().sort().values, net.weight.flatten())


def test_recalibrated_statistics_are_those_of_the_whole_set(labeled: Make) -> None:
    """A folder lists class after class: the statistics must not be those of the first one."""
    subject, train = judged(), labeled(600)
    whole = recalibrate(copy.deepcopy(subject.encoder), subject.config, train.pictures)
    norm = whole.body[1]
    views = torch.cat([v for v in protocol_views(subject, train)])
    with torch.no_grad():
        inner = subject.encoder.body[0](views)
    mean, deviation = inner.mean((0, 2, 3)), inner.std((0, 2, 3))
    assert float(((norm.running_mean - mean).abs() / deviation).max()) < 0.1
    assert float((norm.running_var.sqrt() / deviation - 1).abs().max()) < 0.1
    part = recalibrate(copy.deepcopy(subject.encoder), subject.config, train.pictures, most=120)
    assert float(((part.body[1].running_mean - mean).abs() / deviation).max()) < 0.3
    assert norm.momentum == 0.1 and not whole.training
    torch.manual_seed(9)  # dropout plays no part
    again = recalibrate(copy.deepcopy(subject.encoder), subject.config, train.pictures)
    assert weights_hash(again) == weights_hash(whole)


def protocol_views(subject: Judged, part: Labeled) -> list[Tensor]:
    from smallview.views.making import centre_views

    return list(centre_views(part.pictures, subject.config.size, subject.config.mean, subject.config.std))


def test_recalibrate_leaves_a_net_without_batchnorm(labeled: Make) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    before = weights_hash(net)
    assert weights_hash(recalibrate(net, describe(net, in_channels=3, size=8), labeled(6).pictures)) == before


def test_pixels_of_parts_of_different_sizes_fit_together(labeled: Make) -> None:
    train, test = labeled(30, side=28), labeled(12, side=20, seed=1)
    mixed = labeled(12, side=(18, 40), seed=2)
    assert pixel_side(64, train.pictures, test.pictures) == 20 == pixel_side(64, train.pictures, mixed.pictures, test.pictures)
    assert pixel_side(64, mixed.pictures) == 32 and pixel_side(16, train.pictures) == 16
    assert raw_pixels(train.pictures, 64).shape == (30, 3 * 28 * 28)
    for other in (test, mixed):
        assert judge(judged(size=24), train, other, ("knn",))[0].floor_pixels is not None


def test_raw_pixels_of_small_pictures_are_the_pixels(labeled: Make) -> None:
    part = labeled(5, side=8)
    wanted = np.stack([image.transpose(2, 0, 1).reshape(-1) for image in part.pictures.images]) / 255
    np.testing.assert_allclose(raw_pixels(part.pictures, 32).numpy(), wanted, atol=1e-6)


def test_extract_does_not_depend_on_batches_and_leaves_the_mode(labeled: Make) -> None:
    subject, part = judged(), labeled(30, side=(8, 11))
    subject.encoder.train()
    whole = extract(subject.encoder, subject.config, part.pictures)
    assert subject.encoder.training and whole.dtype == torch.float32
    seen: list[tuple[int, int]] = []
    parts = extract(
        subject.encoder, subject.config, part.pictures, batch_size=7, progress=lambda done, total: seen.append((done, total))
    )
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    assert seen == [(7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]


def test_refusals(labeled: Make) -> None:
    train, test = labeled(30), labeled(12, seed=1)
    with pytest.raises(DataError, match="wanted two or more"):
        judge(judged(), replace(train, labels=np.zeros(30, np.int64)), replace(test, labels=np.zeros(12, np.int64)))
    with pytest.raises(DataError, match="labels up to 9"):
        judge(judged(), train, replace(test, labels=np.full(12, 9)))
    with pytest.raises(DataError, match="1 channels"):
        judge(judged(), labeled(30, channels=1), test)
    with pytest.raises(UsageError, match='did you mean "linear"'):
        choose_protocols("knn,lineer")
    with pytest.raises(UsageError, match="no protocol is named"):
        choose_protocols(" , ")
    with pytest.raises(DataError, match="zebra"):
        match_classes(("cat", "dog"), ("cat", "zebra"))


def test_classes_are_matched_by_name() -> None:
    assert match_classes(("a", "b", "c"), ("c", "a")) == {0: 2, 1: 0}
    assert match_classes(("a", "b"), ("a", "b")) is None
    assert match_classes(None, ("a",)) is None
