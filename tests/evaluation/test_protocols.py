"""Every protocol on a small bench: all contestants, all kinds of targets, the same numbers twice, and the test part decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from smallview.errors import DataError, UsageError
from smallview.evaluation.bench import Bench, Contestant, Labeled, pixels
from smallview.evaluation.features import Judged, Training, weights_hash
from smallview.evaluation.judge import judge
from smallview.evaluation.labelled import mixed, supervised, train_with_labels
from smallview.evaluation.linear import fit_linear
from smallview.evaluation.probes import KNN, LinearSGD, LowShot
from smallview.evaluation.protocols import NAMES, Protocols, protocols_of
from smallview.evaluation.trainings import FineTune, Supervised
from smallview.networks.encoders import build_encoder
from smallview.optimizers import SGD
from smallview.views.view import View

Make = Callable[..., Labeled]
SHORT = {"linear_sgd.epochs": 60, "finetune.epochs": 3, "lowshot.draws": 3, "finetune.batch_size": 16}
TRAINING = Training((View(jitter=0.0, grayscale=0.0), View(jitter=0.0)), SGD(0.1), 16, 40)
FIT = ("knn", "linear", "linear_sgd", "lowshot", "finetune", "supervised", "layers")


def subject() -> Judged:
    net, config = build_encoder("dense_small:8-16-32", size=8, seed=0)
    config = replace(config, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Judged(net.eval(), config, "small", 0, {}, training=TRAINING)


@pytest.mark.parametrize("name", FIT)
def test_each_protocol_beats_chance_with_floors_and_repeats(labeled: Make, name: str) -> None:
    train, test = labeled(90, side=8), labeled(45, side=8, seed=1)
    values = protocols_of(SHORT)
    rows = judge(subject(), train, test, (name,), values=values)
    assert rows and max(row.value for row in rows) > 45.0, [(row.metric, row.value) for row in rows]
    for row in rows:
        assert row.protocol.startswith(name) and row.metric.startswith(name) and 0.0 <= row.value <= 100.0
        assert row.settings["protocol"] == name and row.settings["protocol_settings"] is not None
        if name not in ("finetune", "supervised"):
            assert row.floor_pixels is not None and row.floor_untrained is not None
        assert row.interval is not None and row.interval >= 0.0
    again = judge(subject(), train, test, (name,), values=values)
    assert [(r.value, r.floor_pixels, r.floor_untrained) for r in again] == [
        (r.value, r.floor_pixels, r.floor_untrained) for r in rows
    ]


@pytest.mark.parametrize("name", FIT)
def test_test_labels_decide_nothing(labeled: Make, name: str) -> None:
    """The figure for shuffled test labels is the same predictions' figure: what was fitted did not move."""
    train, test = labeled(60), labeled(30, seed=1)
    values = protocols_of(SHORT)
    bench = Bench(train, test)
    one = Contestant("encoder", subject().encoder, subject().config, "x", training=TRAINING)
    figures = getattr(values, name).measure(one, bench)
    order = np.random.default_rng(0).permutation(len(test.labels))
    other = Bench(train, replace(test, labels=test.labels[order]))
    moved = getattr(values, name).measure(one, other)
    assert [f.settings for f in figures] == [f.settings for f in moved] or name == "lowshot"
    for f, g in zip(figures, moved, strict=True):
        if f.per_picture is not None:
            # where a picture kept its label, whether it was right has not changed
            kept = torch.from_numpy(test.labels == test.labels[order])
            assert torch.equal(f.per_picture[kept], g.per_picture[kept])


def test_the_encoder_stays_whatever_the_protocol(labeled: Make) -> None:
    judged = subject()
    before = weights_hash(judged.encoder)
    judge(judged, labeled(48), labeled(24, seed=1), FIT, values=protocols_of(SHORT))
    assert weights_hash(judged.encoder) == before and not judged.encoder.training


def with_targets(part: Labeled, kind: str) -> Labeled:
    labels = np.asarray(part.labels)
    if kind == "labels":
        return replace(part, labels=np.stack([labels == 0, labels >= 1, labels == 2], 1))
    return replace(part, labels=np.stack([labels * 1.5, -labels + 2.0], 1).astype(np.float32))


@pytest.mark.parametrize("kind", ["labels", "numbers"])
@pytest.mark.parametrize("name", ["knn", "linear", "linear_sgd", "finetune", "layers"])
def test_several_labels_and_numbers(labeled: Make, kind: str, name: str) -> None:
    train, test = (with_targets(part, kind) for part in (labeled(90), labeled(45, seed=1)))
    rows = judge(subject(), train, test, (name,), values=protocols_of({**SHORT, "finetune.lr": 0.02, "finetune.epochs": 6}))
    assert all(row.metric.endswith("mAP %" if kind == "labels" else "R2") for row in rows)
    chance = 60.0 if kind == "labels" else 0.2
    assert max(row.value for row in rows) > chance, [(row.metric, row.value) for row in rows]
    if name in ("knn", "linear"):
        blind = []
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(len(train.labels))
            blind += judge(subject(), replace(train, labels=train.labels[order]), test, (name,), floors=False)
        assert np.mean([row.value for row in blind]) < max(row.value for row in rows) - (10.0 if kind == "labels" else 0.2)


def test_lowshot_needs_its_labels(labeled: Make) -> None:
    with pytest.raises(DataError, match=r"lowshot asks for 25 labels of each class and the smallest class .* has 20"):
        judge(subject(), labeled(60), labeled(30, seed=1), ("lowshot",), values=protocols_of({"lowshot.per_class": (25,)}))
    with pytest.raises(DataError, match="lowshot is for classes"):
        judge(subject(), *(with_targets(labeled(60), "labels"),) * 2, ("lowshot",))
    amounts = LowShot().amounts(Bench(labeled(60), labeled(30)))
    assert amounts == [("1 a class", 1), ("5 a class", 5), ("10 a class", 10), ("10 %", 0.1)]
    assert LowShot(per_class=(2,), shares=()).amounts(Bench(labeled(60), labeled(30))) == [("2 a class", 2)]


def test_the_linear_probe_predicts_as_scikit_learns() -> None:
    source = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 64, generator=source)
    y, t = torch.arange(3000) % 10, torch.arange(2000) % 10
    x, z = (centres[labels] + 2.5 * torch.randn(len(labels), 64, generator=source) for labels in (y, t))
    probe = fit_linear(x, y, 10, seed=0, penalties=(1e-2,))
    a, b = ((part - probe.mean) / probe.std for part in (x, z))
    theirs = LogisticRegression(C=1 / (1e-2 * len(a)), tol=1e-8, max_iter=5000).fit(a.double().numpy(), y.numpy())
    predicted = torch.from_numpy(theirs.predict(b.double().numpy()))
    assert float((probe.predict(z) == predicted).double().mean()) >= 0.999
    accuracy = [float((p == t).double().mean()) for p in (probe.predict(z), predicted)]
    assert 0.4 < accuracy[0] < 0.95 and abs(accuracy[0] - accuracy[1]) <= 0.001


def test_features_in_pieces_are_fitted_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from smallview.evaluation import linear

    source = torch.Generator().manual_seed(0)
    x, y = 3.0 + torch.randn(300, 12, generator=source), torch.arange(300) % 3
    x[:, :3] += 2.0 * torch.nn.functional.one_hot(y, 3)
    whole = fit_linear(x, y, 3, seed=0)
    monkeypatch.setattr(linear, "PIECE", 37)
    monkeypatch.setattr(linear, "HELD", 0)
    pieces = fit_linear(x, y, 3, seed=0)
    assert pieces.penalty == whole.penalty
    torch.testing.assert_close(pieces.weight, whole.weight, atol=1e-3, rtol=1e-2)
    assert torch.equal(pieces.predict(x), whole.predict(x))
    for kind in (torch.stack([y == 0, y > 0], 1), torch.randn(300, 2, generator=source)):
        torch.testing.assert_close(fit_linear(x, kind, 2, seed=0).scores(x), fit_linear(x, kind, 2, seed=0).scores(x))


def test_numbers_are_ridge_regression() -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=source) * torch.arange(1, 7)
    y = x @ torch.randn(6, 2, generator=source) + 0.1 * torch.randn(200, 2, generator=source)
    probe = fit_linear(x, y, 2, seed=0, penalties=(0.1,))
    a = ((x - probe.mean) / probe.std).double()
    target = y.double() - y.double().mean(0)
    wanted = torch.linalg.solve(a.T @ a / 200 + 0.1 * torch.eye(6, dtype=torch.float64), a.T @ target / 200)
    torch.testing.assert_close(probe.weight.double(), wanted, atol=1e-4, rtol=1e-4)


def test_mixup_is_one_share_for_a_batch() -> None:
    images, target = torch.arange(8.0).view(8, 1, 1, 1), torch.arange(8)
    out, one, other, share = mixed("classes", images, target, 1.0, np.random.default_rng(0))
    assert 0.0 < share < 1.0 and torch.equal(one, target) and sorted(other.tolist()) == list(range(8))
    torch.testing.assert_close(out.flatten(), share * one.float() + (1 - share) * other.float())
    same, _, _, whole = mixed("classes", images, target, 0.0, np.random.default_rng(0))
    assert whole == 1.0 and same is images


def test_a_frozen_layer_is_softmax_regression(labeled: Make) -> None:
    """The published protocol on uncropped views is plain gradient descent on fixed features: a slow loop gives the same weights."""
    train = labeled(32, side=8)
    judged, bench = subject(), Bench(train, train)
    plain = View(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)
    net = train_with_labels(
        *(judged.encoder, judged.config, train),
        views=(plain,),
        optimizer=SGD(0.8, 0.9, 0.0, 0.0, "none", nesterov=True),
        batch_size=32,
        steps=5,
        bench=bench,
        seed=3,
        frozen=True,
    )
    x = bench.features(Contestant("encoder", judged.encoder, judged.config, "x"), train)
    weight, bias, speed = torch.zeros(32, 3), torch.zeros(3), [torch.zeros(32, 3), torch.zeros(3)]
    for step in range(5):
        rate = 0.8 * 0.5 * (1 + np.cos(np.pi * step / 5))
        slope = (x @ weight + bias).softmax(1) - torch.nn.functional.one_hot(train.targets, 3)
        for p, v, g in ((weight, speed[0], x.T @ slope / 32), (bias, speed[1], slope.mean(0))):
            v.mul_(0.9).add_(g)
            p.sub_(rate * (g + 0.9 * v))
    torch.testing.assert_close(net.head.weight.T, weight, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(net.head.bias, bias, atol=1e-4, rtol=1e-3)


def test_supervised_starts_fresh_and_learns(labeled: Make) -> None:
    train = labeled(90, side=8)
    judged = subject()
    who = Contestant("encoder", judged.encoder, judged.config, training=TRAINING)
    before = weights_hash(judged.encoder)
    nets = [supervised(who, train, Bench(train, train), replace(TRAINING, steps=steps), 0) for steps in (1, 30, 30)]
    assert weights_hash(judged.encoder) == before
    assert weights_hash(nets[1]) == weights_hash(nets[2]) != weights_hash(nets[0])
    with pytest.raises(UsageError, match="wanted a run folder"):
        Supervised().measure(Contestant("encoder", judged.encoder, judged.config), Bench(train, train))


def test_finetuning_leaves_the_given_encoder_and_uses_the_share(labeled: Make) -> None:
    train = labeled(60, side=8)
    judged, bench = subject(), Bench(labeled(60, side=8), labeled(30, side=8, seed=1))
    before = weights_hash(judged.encoder)
    one = Contestant("encoder", judged.encoder, judged.config, "x")
    found = FineTune(epochs=2, batch_size=8, shares=(0.1, 1.0)).measure(one, bench)
    assert weights_hash(judged.encoder) == before
    assert [(f.metric, f.settings["labels"]) for f in found] == [("finetune 10 % top-1 %", 6), ("finetune top-1 %", len(train))]


def test_pixels_are_the_pixels(labeled: Make) -> None:
    train = labeled(5, side=8)
    who = pixels(subject().config, train)
    wanted = np.stack([image.transpose(2, 0, 1).reshape(-1) for image in train.pictures.images]) / 255
    np.testing.assert_allclose(Bench(train, train).features(who, train).numpy(), wanted, atol=1e-6)


def test_settings_by_path() -> None:
    assert protocols_of({"linear_sgd.lr": "30", "linear_sgd.nesterov": "false"}).linear_sgd == LinearSGD(
        lr=30.0, nesterov=False
    )
    assert protocols_of({"knn.k": "(5,)"}).knn == KNN(k=(5,))
    for path, told in (("knn.kk", "kk"), ("nothing.k", "nothing"), ("knn.temperature", "wanted")):
        with pytest.raises(UsageError, match=told):
            protocols_of({path: "-1"})
    assert set(FIT) <= set(NAMES) == set(vars(Protocols()))


def test_layers_say_which_stage(labeled: Make) -> None:
    judged = replace(subject(), projector=nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)))
    rows = judge(judged, labeled(60), labeled(30, seed=1), ("layers",))
    names = [row.metric.split()[1] for row in rows]
    assert names == ["body.2", "body.5", "body.8", "features", "projector.0", "projector.1", "projector.2"]
    assert [row.floor_untrained is None for row in rows] == [name.startswith("projector") for name in names]
    whole = judge(judged, labeled(60), labeled(30, seed=1), ("linear",))[0]
    assert rows[3].value == whole.value and rows[3].floor_pixels == whole.floor_pixels
