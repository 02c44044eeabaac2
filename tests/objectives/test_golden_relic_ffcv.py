"""Golden values of the two-view losses and of ReLIC: written from the equations outside this package, digits given.

Inputs: six rows of five numbers. Tolerances: 1e-9 in float64, as the digits go; float32 to a part in 10^4.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum, Networks, Shared
from smallview.objectives import (
    Alignment,
    BarlowTwins,
    CentreInvariance,
    Covariance,
    EqCo,
    InBatch,
    InfoNCE,
    MeanSquared,
    Relational,
    RelicInvariance,
    SIGReg,
    Variance,
    barlow_twins,
    byol,
    info_nce,
    nt_xent,
    relic,
    vicreg,
)
from smallview.objectives.relic import divergence
from smallview.records import Candidates, Embedded, Embeddings, ViewBatch

B, D = 6, 5
CPU = torch.device("cpu")
FORMATS = [torch.float64, torch.float32]
# row i's negatives are rows i + 1 and i + 3
TWO = torch.stack([(torch.arange(B) + 1) % B, (torch.arange(B) + 3) % B], 1)


def inputs(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    i, j = torch.arange(B, dtype=torch.float64)[:, None], torch.arange(D, dtype=torch.float64)[None]
    z1 = torch.sin(0.37 * (i + 1) * (j + 2) + 0.11 * j)
    z2 = z1 + 0.3 * torch.cos(0.53 * (i + 2) * (j + 1) - 0.07 * i)
    rows = {
        "z1": z1,
        "z2": z2,
        "t1": z1 + 0.2 * torch.sin(0.71 * (i + 1) * (j + 1)),
        "t2": z2 + 0.2 * torch.cos(0.61 * (i + 3) * (j + 2)),
        "s1": z1 + 0.4 * torch.sin(0.29 * (i + 2) * (j + 3)),
        "shared": torch.cos(0.9 * (j + 1)),
    }
    return {name: value.to(dtype) for name, value in rows.items()}


def close(got: Tensor, wanted: float) -> None:
    single = got.dtype == torch.float32
    assert float(got.detach()) == pytest.approx(wanted, rel=1e-4 if single else 0.0, abs=1e-6 if single else 1e-9)


def gathered(online: list[Tensor], target: list[Tensor], negatives: Tensor | None = None) -> Embeddings:
    """Views by name, with the batch as `InBatch` draws it, or with the given rows of the positive's view as negatives."""
    o, t = torch.stack(online), torch.stack(target)
    b = o.shape[1]
    views, others = tuple(range(len(online))), tuple(range(len(target)))
    if negatives is None:
        seen = Embedded(o, t, views, others)
        candidates, _ = InBatch(views="positive").draw({}, seen, (0, 0))
    else:
        mask = torch.zeros(b, b, dtype=torch.bool).scatter_(1, negatives, True)
        candidates = Candidates(t, is_negative=mask, pictures=negatives)
    return Embeddings(o, t, candidates, views, others)


def test_the_inputs_are_the_ones_that_were_used() -> None:
    x = inputs()
    spots = {
        ("z1", 0, 0): 0.6742879116,
        ("z1", 5, 4): 0.9297117469,
        ("z2", 0, 0): 0.8209495362,
        ("z2", 5, 4): 1.1686174879,
        ("t1", 5, 4): 1.0571962661,
        ("t2", 5, 4): 1.0615123310,
        ("s1", 5, 4): 1.3286512849,
    }
    for (name, row, column), wanted in spots.items():
        assert float(x[name][row, column]) == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("temperature", "alignment", "logsumexp", "total"),
    [
        (0.5, -1.9280802948, 2.6950376666, 0.7669573718),
        (0.2, -4.8202007370, 4.8781748971, 0.0579741602),
        (0.15, -6.4269343160, 6.4392293547, 0.0122950388),
        (0.1, -9.6404014739, 9.6409753198, 0.0005738458),
    ],
)
def test_nt_xent(temperature: float, alignment: float, logsumexp: float, total: float, dtype: torch.dtype) -> None:
    x = inputs(dtype)
    loss = nt_xent(x["z1"], x["z2"], temperature=temperature)
    close(loss, total)
    # minus the mean positive similarity over temperature, from 2 - 2 cos
    pulled = (byol(x["z1"], x["z2"]) / 2.0 - 1.0) / temperature
    close(pulled, alignment)
    close(loss - pulled, logsumexp)
    views = torch.stack([x["z1"], x["z2"]])
    candidates, _ = InBatch().draw({}, Embedded(views, views, (0, 1), (0, 1)), (0, 0))
    close(InfoNCE(temperature)(Embeddings(views, views, candidates, (0, 1), (0, 1)), 0.0), total)


@pytest.mark.parametrize("dtype", FORMATS)
def test_nt_xent_of_two_rows(dtype: torch.dtype) -> None:
    x = inputs(dtype)
    close(nt_xent(x["z1"][:2], x["z2"][:2], temperature=0.5), 0.2840134242)


@pytest.mark.parametrize("dtype", FORMATS)
def test_vicreg(dtype: torch.dtype) -> None:
    x = inputs(dtype)
    wanted = {"invariance": 1.1205680246, "variance": 5.5970082239, "covariance": 0.1714829136, "total": 6.8890591620}
    got = vicreg(x["z1"], x["z2"])
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        close(got[name], value)
    views = gathered([x["z1"], x["z2"]], [x["z1"], x["z2"]])
    close(25.0 * MeanSquared()(views, 0.0), wanted["invariance"])
    close(25.0 * Variance()(views, 0.0), wanted["variance"])
    close(Covariance()(views, 0.0), wanted["covariance"])


@pytest.mark.parametrize("dtype", FORMATS)
def test_barlow_twins(dtype: torch.dtype) -> None:
    x = inputs(dtype)
    on = barlow_twins(x["z1"], x["z2"], off_diagonal=0.0)
    close(on, 0.0041467962)
    close(barlow_twins(x["z1"], x["z2"], off_diagonal=1.0) - on, 1.5183455008)
    close(barlow_twins(x["z1"], x["z2"]), 0.0118903583)
    close(BarlowTwins()(gathered([x["z1"], x["z2"]], [x["z1"], x["z2"]]), 0.0), 0.0118903583)


@pytest.mark.parametrize("dtype", FORMATS)
def test_byol_sums_both_directions(dtype: torch.dtype) -> None:
    x = inputs(dtype)
    close(byol(x["z1"], x["t2"]) + byol(x["z2"], x["t1"]), 0.1707737898)
    views = gathered([x["z1"], x["z2"]], [x["t1"], x["t2"]])
    close(Alignment()(views, 0.0), 0.1707737898)
    close(Alignment(directions="mean")(views, 0.0), 0.1707737898 / 2)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("temperature", "wanted"), [(0.5, 0.1920161541), (0.2, 0.0658900362), (0.1, 0.0183428404)])
def test_one_shared_negative(temperature: float, wanted: float, dtype: torch.dtype) -> None:
    x = inputs(dtype)
    close(info_nce(x["z1"], x["z2"], x["shared"], temperature=temperature), wanted)
    z = torch.stack([x["z1"], x["z2"]])
    one_way = Embeddings(z[:1], z[1:], Candidates(x["shared"]), (0,), (1,))
    close(InfoNCE(temperature)(one_way, 0.0), wanted)


@pytest.mark.parametrize("dtype", FORMATS)
def test_seven_copies_of_it_are_an_offset_of_log_seven(dtype: torch.dtype) -> None:
    x = inputs(dtype)
    close(info_nce(x["z1"], x["z2"], x["shared"].expand(7, -1), temperature=0.5), 0.8057771391)
    close(info_nce(x["z1"], x["z2"], x["shared"], temperature=0.5, margin=EqCo(7.0)), 0.8057771391)


CROSSED = [
    (0.5, None, 0.4710800416, 0.4627414243, 0.0194795234, 0.0181447209),
    (0.2, None, 0.0330602491, 0.0353500472, 0.0085787643, 0.0073393891),
    (0.1, None, 0.0003778657, 0.0005857472, 0.0002985702, 0.0002827083),
    (0.2, TWO, 0.0182306398, 0.0185110791, 0.0040454078, 0.0032029978),
]


def log_shares(online: Tensor, target: Tensor, temperature: float, negatives: Tensor | None) -> Tensor:
    """Log softmax over row i and its negatives, the picture itself first."""
    others = negatives if negatives is not None else torch.stack([(torch.arange(B) + k) % B for k in range(1, B)], 1)
    similar = nn.functional.normalize(online) @ nn.functional.normalize(target).T / temperature
    return similar.gather(1, torch.cat([torch.arange(B)[:, None], others], 1)).log_softmax(1)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("temperature", "negatives", "nll12", "nll21", "kl12", "kl21"), CROSSED)
def test_relic_of_four_tensors(
    temperature: float,
    negatives: Tensor | None,
    nll12: float,
    nll21: float,
    kl12: float,
    kl21: float,
    dtype: torch.dtype,
) -> None:
    x = inputs(dtype)
    close(relic(x["z1"], x["t2"], temperature=temperature, negatives=negatives)[0], nll12)
    close(relic(x["z2"], x["t1"], temperature=temperature, negatives=negatives)[0], nll21)
    p = log_shares(x["z1"], x["t2"], temperature, negatives)
    q = log_shares(x["z2"], x["t1"], temperature, negatives)
    close(divergence(p, q, "p||q", "none"), kl12)
    close(divergence(q, p, "p||q", "none"), kl21)
    close(divergence(p, q, "q||p", "none"), kl21)
    # the term takes each of the two pairs once, so either direction is the mean of both
    views = gathered([x["z1"], x["z2"]], [x["t1"], x["t2"]], negatives)
    close(InfoNCE(temperature)(views, 0.0), (nll12 + nll21) / 2)
    for kl in ("p||q", "q||p"):
        close(RelicInvariance(temperature, kl=kl, convention="four_tensors")(views, 0.0), (kl12 + kl21) / 2)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("temperature", "negatives", "nll", "kl_pq", "kl_qp"),
    [
        (0.5, None, 0.4710800416, 0.0129194349, 0.0128692151),
        (0.2, None, 0.0330602491, 0.0036941341, 0.0037227089),
        (0.1, None, 0.0003778657, 0.0000834023, 0.0000870543),
        (0.2, TWO, 0.0182306398, 0.0017588426, 0.0018002900),
    ],
)
def test_relic_of_one_matrix(
    temperature: float, negatives: Tensor | None, nll: float, kl_pq: float, kl_qp: float, dtype: torch.dtype
) -> None:
    x = inputs(dtype)
    z, t = x["z1"], x["t2"]
    one_way = replace(gathered([z], [t], negatives), target_views=(1,))
    for kl, wanted in (("p||q", kl_pq), ("q||p", kl_qp)):
        got = relic(z, t, temperature=temperature, negatives=negatives, kl=kl)
        close(got[0], nll)
        close(got[1], wanted)
        close(RelicInvariance(temperature, kl=kl)(one_way, 0.0), wanted)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("same_view", "negatives", "nll", "kl_pq", "kl_qp"),
    [
        (True, None, 0.0394835053, 0.0307913618, 0.0304162220),
        (False, None, 0.0444704028, 0.0444782966, 0.0439138925),
        (True, TWO, 0.0267991530, 0.0206894876, 0.0109024845),
        (False, TWO, 0.0326419135, 0.0300187270, 0.0153080938),
    ],
)
def test_relic_v2_over_three_online_and_two_target_views(
    same_view: bool, negatives: Tensor | None, nll: float, kl_pq: float, kl_qp: float, dtype: torch.dtype
) -> None:
    x = inputs(dtype)
    views = gathered([x["z1"], x["z2"], x["s1"]], [x["t1"], x["t2"]], negatives)
    assert len(views.pairs(same_view)) == (6 if same_view else 4)
    close(InfoNCE(0.2, same_view=same_view)(views, 0.0), nll)
    close(RelicInvariance(0.2, kl="p||q", same_view=same_view)(views, 0.0), kl_pq)
    close(RelicInvariance(0.2, kl="q||p", same_view=same_view)(views, 0.0), kl_qp)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("name", "norm", "first"),
    [
        ("nt_xent", 0.1014658626, -0.0071226773),
        ("vicreg", 2.8222194778, -0.5486795315),
        ("barlow", 0.0210565072, -0.0020837198),
    ],
)
def test_gradients(name: str, norm: float, first: float, dtype: torch.dtype) -> None:
    x = inputs(dtype)
    z = x["z1"].clone().requires_grad_()
    loss = {
        "nt_xent": lambda: nt_xent(z, x["z2"], temperature=0.5),
        "vicreg": lambda: vicreg(z, x["z2"])["total"],
        "barlow": lambda: barlow_twins(z, x["z2"]),
    }[name]()
    (gradient,) = torch.autograd.grad(loss, z)
    close(gradient.norm(), norm)
    close(gradient[0, 0], first)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("stop_gradient", "on_z1", "on_z2"),
    [
        ("none", 0.0131554229, 0.0100670163),
        ("entropy", 0.0969202790, 0.0100670163),
        ("p", 0.0, 0.0100670163),
        ("q", 0.0131554229, 0.0),
    ],
)
def test_stop_gradients_of_the_divergence(stop_gradient: str, on_z1: float, on_z2: float, dtype: torch.dtype) -> None:
    x = inputs(dtype)
    z1, z2 = x["z1"].clone().requires_grad_(), x["z2"].clone().requires_grad_()
    p, q = log_shares(z1, x["t2"], 0.2, None), log_shares(z2, x["t1"], 0.2, None)
    kl = divergence(p, q, "p||q", stop_gradient)
    close(kl, 0.0085787643)
    for gradient, wanted in zip(torch.autograd.grad(kl, (z1, z2), materialize_grads=True), (on_z1, on_z2), strict=True):
        close(gradient.norm(), wanted)
    if stop_gradient in ("p", "q"):
        # the term is the mean of two pairs, and what is held in one leads in the other: each side keeps half of one
        views = gathered([z1, z2], [x["t1"], x["t2"]])
        term = RelicInvariance(0.2, stop_gradient=stop_gradient, convention="four_tensors")
        of_z1, of_z2 = torch.autograd.grad(term(views, 0.0), (z1, z2))
        close((of_z2 if stop_gradient == "p" else of_z1).norm(), max(on_z1, on_z2) / 2)


def test_collapsed_embeddings() -> None:
    same = inputs()["z1"][:1].expand(B, -1)
    assert float(nt_xent(same, same, temperature=0.2)) == pytest.approx(2.3978952728, abs=1e-9)
    for negatives in (None, TWO):
        nll, kl = relic(same, same, temperature=0.2, negatives=negatives)
        assert float(nll) == pytest.approx(1.7917594692 if negatives is None else math.log(3), abs=1e-9)
        assert abs(float(kl)) < 1e-12
    terms = vicreg(same, same)
    assert float(terms["variance"]) == pytest.approx(24.75, abs=1e-9)
    assert abs(float(terms["covariance"])) < 1e-12 and float(terms["invariance"]) == 0.0


def test_equal_orthonormal_views() -> None:
    eye = torch.eye(B, dtype=torch.float64)
    assert float(nt_xent(eye, eye, temperature=0.5)) == pytest.approx(0.8558410485, abs=1e-9)
    assert float(nt_xent(eye, eye, temperature=0.5)) == pytest.approx(math.log(math.e**2 + 10) - 2, abs=1e-12)


def test_equal_and_opposite_directions() -> None:
    z = inputs()["z1"]
    for target, wanted in ((z, 0.0), (-z, 8.0)):
        assert float(byol(z, target) + byol(z, target)) == pytest.approx(wanted, abs=1e-12)
        assert float(Alignment()(gathered([z, 3.0 * z], [target, target]), 0.0)) == pytest.approx(wanted, abs=1e-12)
    assert 0.0 <= float(barlow_twins(z, z, off_diagonal=0.0)) < 1e-8


def test_one_negative_is_a_softplus_and_copies_of_it_an_offset() -> None:
    x = inputs()
    q, k, n = (nn.functional.normalize(x[name]) for name in ("z1", "z2", "shared"))
    apart = (q @ n[0] - (q * k).sum(1)) / 0.2
    torch.testing.assert_close(info_nce(q, k, n, temperature=0.2, reduction="none"), nn.functional.softplus(apart))
    for copies in (2, 5):
        got = info_nce(q, k, n.expand(copies, -1), temperature=0.2, reduction="none")
        torch.testing.assert_close(got, nn.functional.softplus(apart + math.log(copies)))
        torch.testing.assert_close(got, info_nce(q, k, n, temperature=0.2, margin=EqCo(copies), reduction="none"))


def test_order_of_pictures_and_of_views() -> None:
    x, order = inputs(), torch.tensor([4, 0, 5, 2, 1, 3])
    losses = {
        "nt_xent": lambda a, b: nt_xent(a, b, temperature=0.2),
        "vicreg": lambda a, b: vicreg(a, b)["total"],
        "barlow": barlow_twins,
        "byol": lambda a, b: byol(a, b) + byol(b, a),
        "relic nll": lambda a, b: relic(a, b, temperature=0.2)[0],
        "relic kl": lambda a, b: relic(a, b, temperature=0.2)[1],
    }
    for name, loss in losses.items():
        value = loss(x["z1"], x["z2"])
        torch.testing.assert_close(loss(x["z1"][order], x["z2"][order]), value, msg=name)
        # but not the pictures of one view alone, which every loss must notice
        assert abs(float(loss(x["z1"][order], x["z2"]) - value)) > 1e-3, name
        if not name.startswith("relic"):
            torch.testing.assert_close(loss(x["z2"], x["z1"]), value, msg=name)


class Counting(nn.Module):
    """An encoder that remembers what it was shown: (side, pictures) of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.seen: list[tuple[int, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((images.shape[-1], len(images)))
        return self.linear(images.mean((2, 3)))

    def pictures(self) -> dict[int, int]:
        """How many pictures of each side."""
        return {side: sum(n for s, n in self.seen if s == side) for side in {s for s, _ in self.seen}}


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def four_large_two_small(small: str = "online") -> list[ViewBatch]:
    return [ViewBatch(images(5, 3, 8, 8) + v) for v in range(4)] + [ViewBatch(images(5, 3, 4, 4) + v, small) for v in range(2)]


def test_small_views_never_enter_the_target_network() -> None:
    torch.manual_seed(0)
    networks = Networks(Counting(), 4, Heads(MLP((8,), 4)), Momentum(0.9))
    seen = networks(four_large_two_small())
    assert networks.online.encoder.pictures() == {8: 20, 4: 10}
    assert networks.target.encoder.pictures() == {8: 20}
    assert seen.online.shape == (6, 5, 4) and seen.target.shape == (4, 5, 4)
    assert (seen.online_views, seen.target_views) == ((0, 1, 2, 3, 4, 5), (0, 1, 2, 3))

    candidates, _ = InBatch(views="positive").draw({}, seen, (0, 0))
    views = Embeddings(seen.online, seen.target, candidates, seen.online_views, seen.target_views)
    for same_view, pairs in ((True, 24), (False, 20)):
        assert len(views.pairs(same_view)) == pairs
        mean = InfoNCE(0.2, same_view=same_view)(views, 0.0)
        torch.testing.assert_close(InfoNCE(0.2, same_view=same_view, directions="sum")(views, 0.0), pairs * mean)


def test_a_shared_network_sees_every_view_once() -> None:
    torch.manual_seed(0)
    networks = Networks(Counting(), 4, Heads(MLP((8,), 4)), Shared(stop_gradient=True))
    seen = networks(four_large_two_small())
    assert networks.online.encoder.pictures() == {8: 20, 4: 10}
    assert seen.target.shape == (4, 5, 4) and not seen.target.requires_grad


def test_nothing_flows_back_into_a_momentum_target() -> None:
    torch.manual_seed(0)
    networks = Networks(Counting(), 4, Heads(MLP((8,), 4), MLP((8,), 4)), Momentum(0.9))
    seen = networks(four_large_two_small())
    candidates, _ = InBatch(views="positive").draw({}, seen, (0, 0))
    views = Embeddings(seen.online, seen.target, candidates, seen.online_views, seen.target_views)
    for term in (InfoNCE(0.2), RelicInvariance(0.2), Alignment(), Relational(), MeanSquared(), BarlowTwins()):
        networks.zero_grad()
        term(views, 0.0).backward(retain_graph=True)
        assert all(p.grad is None for p in networks.target.parameters())
        assert sum(float(p.grad.abs().sum()) for p in networks.online.encoder.parameters()) > 0, type(term).__name__


@pytest.mark.parametrize("same_view", [True, False])
def test_duplicating_all_views_changes_nothing(same_view: bool) -> None:
    x = inputs()
    online, target = [x["z1"], x["z2"], x["s1"]], [x["t1"], x["t2"]]
    once = gathered(online, target)
    twice = gathered(online + online, target + target)
    twice = replace(twice, online_views=(0, 1, 2, 0, 1, 2), target_views=(0, 1, 0, 1))
    bank = Candidates(nn.functional.normalize(torch.cat([x["s1"], x["shared"]])))
    terms = [
        InfoNCE(0.2, same_view=same_view),
        RelicInvariance(0.2, same_view=same_view),
        Alignment("mean"),
        BarlowTwins(),
        MeanSquared(),
        Variance(),
        Covariance(),
        SIGReg(8),
        CentreInvariance(),
        Relational(),
    ]
    if not same_view:
        terms.append(RelicInvariance(0.2, convention="four_tensors"))
    for term in terms:
        torch.testing.assert_close(term(twice, 0.0), term(once, 0.0), msg=str(term))
    for term in (InfoNCE(0.2, same_view=same_view), Relational()):
        torch.testing.assert_close(
            term(replace(twice, candidates=bank), 0.0), term(replace(once, candidates=bank), 0.0), msg=str(term)
        )


@pytest.mark.parametrize("buffers", ["own", "copy", "average"])
def test_the_target_follows_in_weights_and_where_asked_in_statistics(buffers: str) -> None:
    torch.manual_seed(0)
    networks = Networks(nn.Linear(3, 4), 4, Heads(MLP((8,), 4)), Momentum(0.75, buffers=buffers))
    online, target = dict(networks.online.named_parameters()), dict(networks.target.named_parameters())
    on_buffers, at_buffers = dict(networks.online.named_buffers()), dict(networks.target.named_buffers())
    assert online.keys() == target.keys() and on_buffers.keys() == at_buffers.keys()
    for name in online:
        assert torch.equal(online[name], target[name]) and online[name] is not target[name]
    with torch.no_grad():
        for p in online.values():
            p.add_(1.0)
        for name, buffer in on_buffers.items():
            buffer.add_(7 if name.endswith("tracked") else 2.0)
    before = {name: p.clone() for name, p in (target | at_buffers).items()}
    networks.follow(0.5, 10)
    for name in online:
        torch.testing.assert_close(target[name], 0.75 * before[name] + 0.25 * online[name])
    share = {"own": 0.0, "copy": 1.0, "average": 0.25}[buffers]
    for name in on_buffers:
        if on_buffers[name].is_floating_point():
            torch.testing.assert_close(at_buffers[name], before[name] + share * (on_buffers[name] - before[name]), msg=name)


def test_a_momentum_of_one_never_moves() -> None:
    torch.manual_seed(0)
    networks = Networks(nn.Linear(3, 4), 4, Heads(MLP((8,), 4)), Momentum(1.0))
    before = {name: p.clone() for name, p in networks.target.named_parameters()}
    with torch.no_grad():
        for p in networks.online.parameters():
            p.add_(1.0)
    for progress in (0.0, 0.5, 1.0):
        networks.follow(progress, 10)
    assert all(torch.equal(p, before[name]) for name, p in networks.target.named_parameters())
