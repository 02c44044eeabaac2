"""Power: each fault below trains without complaint, and some were published; on the inputs of the golden values it is told apart.

Every loss is written here once more with a place for a fault. Without one it is the package's; with one it is further away than any
tolerance of the other tests.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum, Networks, Shared
from smallview.objectives import (
    Alignment,
    InBatch,
    InfoNCE,
    RelicInvariance,
    barlow_twins,
    byol,
    relic,
    ressl,
    sigreg,
    vicreg,
)
from smallview.objectives.gaussian import _directions
from smallview.records import Embedded, Embeddings, ViewBatch

TOLERANCE, APART = 1e-9, 1e-5
B, D = 6, 5


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z1, z2, t1, t2 of the golden values, float64 [6, 5]."""
    i, j = torch.arange(B, dtype=torch.float64)[:, None], torch.arange(D, dtype=torch.float64)[None]
    z1 = torch.sin(0.37 * (i + 1) * (j + 2) + 0.11 * j)
    z2 = z1 + 0.3 * torch.cos(0.53 * (i + 2) * (j + 1) - 0.07 * i)
    return z1, z2, z1 + 0.2 * torch.sin(0.71 * (i + 1) * (j + 1)), z2 + 0.2 * torch.cos(0.61 * (i + 3) * (j + 2))


def told_apart(right: float, written: float, faulty: float) -> None:
    assert written == pytest.approx(right, abs=TOLERANCE)
    assert abs(faulty - right) > APART


def relic_kl(fault: str = "") -> float:
    """KL(P || Q) of one similarity matrix of (z1, t2) at temperature 0.2."""
    z1, z2, t1, t2 = inputs()
    s = z1 @ t2.T / 0.2 if fault == "not normalised" else F.normalize(z1) @ F.normalize(t2).T / 0.2
    p, q = s.log_softmax(1), s.T.log_softmax(1)
    if fault == "positives only":  # a softmax over the batch, of each view's similarity to its own target
        p, q = (F.cosine_similarity(a, b)[None].div(0.2).log_softmax(1) for a, b in ((z1, t2), (z2, t1)))
    if fault == "rows twice":
        q = p
    if fault == "columns as they lie":  # normalised along columns, but then read along rows
        q = s.log_softmax(0)
    if fault == "probabilities for logarithms":
        return float(F.kl_div(q.exp(), p.exp(), reduction="batchmean"))
    if fault == "the other direction":
        p, q = q, p
    if fault == "over all entries":
        return float((p.exp() * (p - q)).mean())
    entropy, cross = (p.exp() * p).sum(1), (p.exp() * q).sum(1)
    if fault == "entropy left out":
        entropy = torch.zeros_like(entropy)
    if fault == "own picture left out":
        off = ~torch.eye(B, dtype=torch.bool)
        entropy, cross = (p.exp() * p * off).sum(1), (p.exp() * q * off).sum(1)
    return float((entropy - cross).mean())


@pytest.mark.parametrize(
    "fault",
    [
        "not normalised",
        "positives only",
        "rows twice",
        "columns as they lie",
        "probabilities for logarithms",
        "the other direction",
        "over all entries",
        "entropy left out",
        "own picture left out",
    ],
)
def test_faults_of_relic(fault: str) -> None:
    z1, _, _, t2 = inputs()
    told_apart(float(relic(z1, t2, temperature=0.2)[1]), relic_kl(), relic_kl(fault))


def test_a_stop_gradient_that_changes_the_value_is_seen() -> None:
    """Dropping the entropy has the gradient of "entropy" and another value: both are looked at."""
    z1, _, _, t2 = inputs()
    for stop in ("none", "entropy", "p", "q"):
        value = float(relic(z1, t2, temperature=0.2, stop_gradient=stop)[1])
        told_apart(value, relic_kl(), relic_kl("entropy left out"))


def test_conventions_and_pairs_of_relic_are_told_apart() -> None:
    z1, z2, t1, t2 = inputs()
    online, target = torch.stack([z1, z2]), torch.stack([t1, t2])
    views = Embeddings(online, target, None, (0, 1), (0, 1))
    values = [
        float(term(views, 0.0))
        for term in (
            RelicInvariance(0.2),
            RelicInvariance(0.2, kl="q||p"),
            RelicInvariance(0.2, same_view=True),
            RelicInvariance(0.2, convention="four_tensors"),
            RelicInvariance(0.21),
        )
    ]
    # the sum of the pairs in place of their mean, and the mean over the wrong number of them
    values += [2.0 * values[0], 0.5 * values[0]]
    # the two directions agree to second order: they differ by 4e-6 here
    assert all(abs(a - b) > 1000 * TOLERANCE for n, a in enumerate(values) for b in values[:n])


def written_vicreg(fault: str = "") -> float:
    z1, z2, _, _ = inputs()
    total = 25.0 * (z1 - z2).square().mean()
    if fault == "squared distance of rows":
        total = 25.0 * (z1 - z2).square().sum(1).mean()
    for z in (z1, z2):
        z = z if fault == "not centred" else z - z.mean(0)
        c = z.T @ z / (B if fault == "biased covariance" else B - 1)
        spread = z.var(0, correction=0 if fault == "biased variance" else 1)
        hinge = F.relu(1.0 - (spread if fault == "variance for deviation" else (spread + 1e-4).sqrt())).mean()
        if fault == "no epsilon":
            hinge = F.relu(1.0 - spread.sqrt()).mean()
        total = total + 25.0 * hinge / (1.0 if fault == "variance not halved" else 2.0)
        off = c.square().sum() - c.diagonal().square().sum()
        if fault == "diagonal kept":
            off = c.square().sum()
        total = total + off / {"over the square of D": D * D, "covariance halved": 2 * D}.get(fault, D)
    return float(total)


@pytest.mark.parametrize(
    "fault",
    [
        "variance not halved",
        "biased variance",
        "biased covariance",
        "variance for deviation",
        "no epsilon",
        "not centred",
        "diagonal kept",
        "over the square of D",
        "covariance halved",
        "squared distance of rows",
    ],
)
def test_faults_of_vicreg(fault: str) -> None:
    z1, z2, _, _ = inputs()
    told_apart(float(vicreg(z1, z2)["total"]), written_vicreg(), written_vicreg(fault))


def test_the_sum_of_both_hinges_is_another_codes_vicreg() -> None:
    """solo-learn's number on these inputs; its std_coeff of 25 means 50 here."""
    assert written_vicreg("variance not halved") == pytest.approx(12.486067, abs=1e-6)
    z1, z2, _, _ = inputs()
    assert float(vicreg(z1, z2, variance=50.0)["total"]) == pytest.approx(12.486067, abs=1e-6)


def written_barlow(fault: str = "") -> float:
    z1, z2, _, _ = inputs()

    def whiten(z: Tensor) -> Tensor:
        z = z if fault == "not centred" else z - z.mean(0)
        if fault == "rows of unit length":
            return F.normalize(z)
        return z / (z.var(0, correction=1 if fault == "unbiased" else 0) + (0.0 if fault == "no epsilon" else 1e-5)).sqrt()

    c = whiten(z1).T @ whiten(z2) / {"over one less": B - 1, "over D": D, "over both views": 2 * B}.get(fault, B)
    on, off = (c.diagonal() - 1.0).square().sum(), c.square().sum() - c.diagonal().square().sum()
    if fault == "diagonal not moved":
        on = c.diagonal().square().sum()
    if fault == "diagonal kept":
        off = c.square().sum()
    return float(on + (0.005 if fault == "another weight" else 0.0051) * off)


@pytest.mark.parametrize(
    "fault",
    [
        "unbiased",
        "over one less",
        "over D",
        "over both views",
        "not centred",
        "rows of unit length",
        "diagonal not moved",
        "diagonal kept",
        "another weight",
    ],
)
def test_faults_of_barlow_twins(fault: str) -> None:
    z1, z2, _, _ = inputs()
    told_apart(float(barlow_twins(z1, z2)), written_barlow(), written_barlow(fault))


def test_the_epsilon_of_barlow_twins_is_seen() -> None:
    z1, z2, _, _ = inputs()
    assert abs(written_barlow("no epsilon") - float(barlow_twins(z1, z2))) > 100 * TOLERANCE


def test_faults_of_byol() -> None:
    z1, z2, t1, t2 = inputs()

    def written(*pairs: tuple[Tensor, Tensor]) -> float:
        return float(sum((F.normalize(a) - F.normalize(b)).square().sum(1).mean() for a, b in pairs))

    online, target = torch.stack([z1, z2]), torch.stack([t1, t2])
    right = float(Alignment()(Embeddings(online, target, None, (0, 1), (0, 1)), 0.0))
    for faulty in (
        written((z1, t2), (z2, t1)) / 2,  # the mean in place of the two-term sum
        written((z1, t2)),  # one direction
        written((z1, t1), (z2, t2)),  # a view towards itself
        written((z1, t1), (z1, t2), (z2, t1), (z2, t2)),
        float((z1 - t2).square().sum(1).mean() + (z2 - t1).square().sum(1).mean()),  # not normalised
        -written((z1, t2), (z2, t1)) / 2 + 2.0,  # the cosine in place of the distance
        written((z1, t2), (z2, t1)) / D,  # a mean over dimensions as well
    ):
        told_apart(right, written((z1, t2), (z2, t1)), faulty)
    assert float(byol(z1, t2)) == pytest.approx(written((z1, t2)), abs=TOLERANCE)


def written_ressl(fault: str = "") -> float:
    z1, z2, t1, _ = inputs()
    to, label_to = (0.2, 0.5) if fault == "temperatures exchanged" else (0.5, 0.2)
    rows = (lambda x: x) if fault == "not normalised" else F.normalize
    online, target, bank = rows(z1), rows(t1), rows(z2)
    if fault == "sides exchanged":
        online, target = target, online
    logits, label = online @ bank.T / to, (target @ bank.T / label_to).softmax(1)
    if fault == "positive among them":
        logits = torch.cat([(online * target).sum(1, keepdim=True) / to, logits], 1)
        label = torch.cat([torch.ones(B, 1), target @ bank.T], 1).div(label_to).softmax(1)
    if fault == "hard label":
        label = F.one_hot(label.argmax(1), B).double()
    if fault == "probabilities for logarithms":
        return float(-(label * logits.softmax(1)).sum(1).mean())
    loss = -(label * logits.log_softmax(1)).sum(1).mean()
    return float(loss + (label * label.log()).sum(1).mean()) if fault == "divergence" else float(loss)


@pytest.mark.parametrize(
    "fault",
    [
        "temperatures exchanged",
        "not normalised",
        "sides exchanged",
        "positive among them",
        "hard label",
        "probabilities for logarithms",
        "divergence",
    ],
)
def test_faults_of_ressl(fault: str) -> None:
    z1, z2, t1, _ = inputs()
    right = float(ressl(z1, t1, z2, temperature=0.5, target_temperature=0.2))
    told_apart(right, written_ressl(), written_ressl(fault))


def written_sigreg(fault: str = "") -> float:
    z, slices = inputs()[0], 16
    a = _directions(D, slices, (1, 2), z)
    if fault == "directions of any length":
        a = a * torch.linspace(0.5, 1.5, slices, dtype=torch.float64)
    x = (F.normalize(z) if fault == "rows of unit length" else z) @ a  # [B, T]
    if fault == "standardised first":
        x = (x - x.mean(0)) / x.std(0)
    points = 16 if fault == "a point fewer" else 17
    t = torch.linspace(0.0, 5.0 if fault == "to 5" else 3.0, points, dtype=torch.float64)
    weights = torch.full_like(t, float(2.0 * t[1]))
    if fault != "ends counted whole":
        weights[0] = weights[-1] = t[1]
    if fault == "not doubled":
        weights = weights / 2
    gauss = torch.exp(-0.5 * t.square())
    weights = weights if fault == "no window" else weights * gauss
    xt = x[..., None] * t
    error = (xt.cos().mean(0) - gauss).square() + (0.0 if fault == "real part only" else xt.sin().mean(0).square())
    statistic = error @ weights
    return float(statistic.mean() if fault == "not times N" else B * statistic.mean())


@pytest.mark.parametrize(
    "fault",
    [
        "directions of any length",
        "rows of unit length",
        "standardised first",
        "a point fewer",
        "to 5",
        "ends counted whole",
        "not doubled",
        "no window",
        "real part only",
        "not times N",
    ],
)
def test_faults_of_sigreg(fault: str) -> None:
    told_apart(float(sigreg(inputs()[0], slices=16, key=(1, 2))), written_sigreg(), written_sigreg(fault))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.sides = nn.Linear(3, 4), set[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.sides.add(images.shape[-1])
        return self.linear(images.mean((2, 3)))


def views(small: str) -> list[ViewBatch]:
    source = torch.Generator().manual_seed(0)
    large = [ViewBatch(torch.randn(5, 3, 8, 8, generator=source)) for _ in range(2)]
    return [*large, ViewBatch(torch.randn(5, 3, 4, 4, generator=source), small)]


def embed(small: str) -> tuple[Networks, Embedded]:
    torch.manual_seed(0)
    networks = Networks(Counting(), 4, Heads(MLP((8,), 4)), Momentum(0.9))
    return networks, networks(views(small))


def test_small_views_fed_to_the_target_are_seen() -> None:
    losses = {}
    for small, sides, pairs in (("online", {8}, 4), ("both", {8, 4}, 6)):
        networks, seen = embed(small)
        assert networks.target.encoder.sides == sides
        candidates, _ = InBatch(views="positive").draw({}, seen, (0, 0))
        embeddings = Embeddings(seen.online, seen.target, candidates, seen.online_views, seen.target_views)
        assert len(embeddings.pairs()) == pairs
        losses[small] = [float(term(embeddings, 0.0).detach()) for term in (InfoNCE(0.2), RelicInvariance(0.2), Alignment())]
    for a, b in zip(losses["online"], losses["both"], strict=True):
        assert abs(a - b) > 1e-3


def simsiam_gradient(stop_gradient: bool) -> Tensor:
    torch.manual_seed(0)
    networks = Networks(Counting(), 4, Heads(MLP((8,), 4), MLP((8,), 4)), Shared(stop_gradient=stop_gradient))
    seen = networks(views("online"))
    loss = Alignment("mean")(Embeddings(seen.online, seen.target, None, seen.online_views, seen.target_views), 0.0)
    return torch.autograd.grad(loss, networks.online.encoder.linear.weight)[0]


def test_simsiam_without_stop_gradient_is_seen() -> None:
    right, wrong = simsiam_gradient(True), simsiam_gradient(False)
    torch.testing.assert_close(simsiam_gradient(True), right)
    assert float((wrong - right).norm()) > 0.1 * float(right.norm())


def test_a_target_that_is_not_held_is_seen() -> None:
    """The plain function of ReLIC lets the caller decide; ReSSL's target is a label, whoever hands it over."""
    z1, z2, t1, _ = inputs()
    online, target = z1.clone().requires_grad_(), t1.clone().requires_grad_()
    for value, held in (
        (relic(online, target, temperature=0.2)[1], False),
        (ressl(online, target, z2, temperature=0.5, target_temperature=0.2), True),
    ):
        of_online, of_target = torch.autograd.grad(value, (online, target), allow_unused=True)
        assert float(of_online.norm()) > 1e-3
        assert (of_target is None) == held
