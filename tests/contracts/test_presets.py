"""One table: every preset keeps every contract. A new preset is tested by being listed in PRESETS."""

from __future__ import annotations

import copy
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from presets_worker import small
from torch import Tensor, nn

from smallview.joint_embedding import Method, Term, compute_loss
from smallview.networks.encoders import build_encoder
from smallview.networks.heads import Heads
from smallview.networks.online_target import Momentum, Networks, Shared
from smallview.objectives import (
    Decoupled,
    EqCo,
    Fixed,
    InBatch,
    InfoNCE,
    NoNegatives,
    Queue,
    RelicInvariance,
    UniformSmoothing,
    info_nce,
)
from smallview.optimizers import AdamW, parameter_groups
from smallview.presets import PRESETS, Preset, method, methods, preset
from smallview.records import ViewBatch
from smallview.schedules import Steps
from smallview.settings import diff, from_tables, override, to_tables, to_toml
from smallview.training.cost import encoder_passes
from smallview.training.loop import train_step
from smallview.training.precision import Precision
from smallview.training.state import TrainState
from smallview.views import sampling
from smallview.views.view import View, pixels

B, SIZE, CPU = 24, 16, torch.device("cpu")


class Tiny(nn.Module):
    """An encoder of the user's own."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.body(images).mean((2, 3))
        return out


def dense_small(channels: int) -> tuple[nn.Module, int]:
    net, config = build_encoder("dense_small:8-16-32", in_channels=channels, size=SIZE)
    return net, config.features


def tiny(channels: int) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    return Tiny(channels), 12


def patches(channels: int) -> tuple[nn.Module, int]:
    net, config = build_encoder("patches:4-8-16", in_channels=channels, size=SIZE)
    return net, config.features


ENCODERS: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "dense_small": dense_small,
    "patches": patches,
    "own module": tiny,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=sorted(PRESETS))
def chosen(request: pytest.FixtureRequest) -> Preset:
    return PRESETS[request.param]()


@pytest.fixture
def narrow(chosen: Preset) -> Preset:
    """A preset with slim heads, for what holds at any width: those of 8,192 are most of a step's cost."""
    return replace(chosen, method=small(chosen.method))


def begin(chosen: Preset, encoder: str = "own module", channels: int = 3) -> TrainState:
    net, features = ENCODERS[encoder](channels)
    torch.manual_seed(1)
    networks = Networks(net, features, chosen.method.heads, chosen.method.target).train()

    def cut(pictures: tuple[int, ...], patches: int, scale: tuple[float, float]) -> Tensor:
        source = torch.Generator().manual_seed(7)
        return torch.randn(len(pictures) * patches, channels, SIZE, SIZE, generator=source)

    bank = chosen.method.negatives.init(0, chosen.method.heads.projector.out, CPU, cut)
    return TrainState(networks, chosen.optimizer.build(networks, CPU), bank)


def views_of(chosen: Preset, step: int = 0, channels: int = 3) -> tuple[ViewBatch, ...]:
    source = torch.Generator().manual_seed(step)
    return tuple(
        ViewBatch(torch.randn(B, channels, side, side, generator=source), view.seen_by)
        for view in chosen.method.views
        for side in [pixels(view.size, SIZE, step / 8)]
    )


def go(
    state: TrainState, chosen: Preset, steps: int, channels: int = 3, dtype: str = "float32", lr: float = 0.05
) -> list[float]:
    losses = []
    for _ in range(steps):
        done = train_step(
            state,
            chosen.method,
            views_of(chosen, state.step, channels),
            progress=state.step / 8,
            lr=lr,
            seed=0,
            precision=Precision("channels_first", dtype, ""),
            device=CPU,
        )
        assert done.finite
        state.step += 1
        losses.append(done.loss)
    return losses


def copies(state: TrainState) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.tensors().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_loss_is_finite_and_backward_reaches_every_trainable_weight(chosen: Preset, encoder: str) -> None:
    state = begin(chosen, encoder)
    loss, losses, _, embeddings = compute_loss(chosen.method, state.networks, state.bank, views_of(chosen), 0.0, (0, 0))
    assert loss.dim() == 0 and bool(torch.isfinite(loss)) and losses.keys() == chosen.method.objective.keys()
    weighted = sum(term.weight * losses[name] for name, term in chosen.method.objective.items())
    torch.testing.assert_close(loss, weighted)
    assert embeddings.online.shape[1:] == (B, chosen.method.heads.projector.out)
    loss.backward()
    trainable = {name: p for name, p in state.networks.named_parameters() if p.requires_grad}
    assert trainable
    untouched = [name for name, p in trainable.items() if p.grad is None or not bool(torch.isfinite(p.grad).all())]
    assert not untouched
    silent = [name for name, p in trainable.items() if p.dim() > 1 and not bool(p.grad.any())]
    assert not silent
    if state.networks.target is not None:
        assert all(p.grad is None for p in state.networks.target.parameters())


def test_a_step_changes_what_it_should(chosen: Preset) -> None:
    state = begin(chosen)
    before = copies(state)
    go(state, chosen, 2)
    after = copies(state)
    assert all(not torch.equal(before[n], after[n]) for n in before if n.startswith("networks.online") and "weight" in n)
    stays = isinstance(chosen.method.negatives, Fixed)
    assert all(torch.equal(before[n], after[n]) == stays for n in before if n.startswith("bank."))
    if state.networks.target is not None:
        moved = [n for n in before if n.startswith("networks.target") and "weight" in n]
        assert moved and all(not torch.equal(before[n], after[n]) for n in moved)


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_three_steps_are_deterministic_to_the_bit(narrow: Preset, encoder: str) -> None:
    a, b = begin(narrow, encoder), begin(narrow, encoder)
    torch.manual_seed(11)
    first = go(a, narrow, 3)
    torch.manual_seed(22)  # nobody's stream of random numbers matters
    assert go(b, narrow, 3) == first
    assert same_bits(copies(a), copies(b))


@pytest.mark.parametrize("optimizer", ["own", "AdamW"])
def test_a_fresh_state_that_loads_the_tensors_goes_on_with_the_same_bits(narrow: Preset, optimizer: str) -> None:
    if optimizer == "AdamW":
        narrow = replace(narrow, optimizer=AdamW())
    through = begin(narrow)
    go(through, narrow, 2)
    stored = copies(through)
    last = go(through, narrow, 2)
    fresh = begin(narrow)
    go(fresh, narrow, 1)  # whatever it was before
    fresh.load(stored, step=2)
    assert same_bits(copies(fresh), stored) and fresh.step == 2
    held = {name: value.clone() for name, value in stored.items()}
    assert go(fresh, narrow, 2) == last
    assert same_bits(copies(fresh), copies(through))
    assert same_bits(stored, held), "the tensors that were loaded moved with the state"


def test_bfloat16_autocast_is_survived_and_stays_near(narrow: Preset) -> None:
    exact, half = begin(narrow), begin(narrow)
    wanted, got = go(exact, narrow, 3, lr=1e-3), go(half, narrow, 3, dtype="bfloat16", lr=1e-3)
    assert got == pytest.approx(wanted, rel=0.1, abs=0.1)
    assert all(v.dtype in (torch.float32, torch.int64) for v in half.tensors().values())


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_pictures_of_other_channels(narrow: Preset, encoder: str, channels: int) -> None:
    assert np.isfinite(go(begin(narrow, encoder, channels), narrow, 1, channels)).all()


def test_every_view_can_be_drawn(chosen: Preset) -> None:
    for v, view in enumerate(chosen.method.views):
        drawn = sampling.draw(view, v, pixels(view.size, SIZE, 0.5), [20] * B, [30] * B, np.arange(B), 0, 0)
        assert drawn.box.shape == (B, 4) and bool(np.isfinite(drawn.box).all())


def test_settings_survive_toml(chosen: Preset) -> None:
    again = from_tables(Preset, tomllib.loads(to_toml(chosen)))
    assert again == chosen
    # to the letter: 256 for a number that is read back as 256.0 would look like a changed setting to a run that goes on
    assert to_toml(again) == to_toml(chosen) and diff(to_tables(again), to_tables(chosen)) == []


def test_uncertain_fields_exist(chosen: Preset) -> None:
    for path in chosen.uncertain:
        value: object = chosen
        for part in path.split("."):
            key = int(part) if isinstance(value, tuple) else part
            value = value[key] if isinstance(value, (dict, tuple)) else getattr(value, part)
        assert value is not None
    with pytest.raises(Exception, match="no_such"):
        override(chosen, "method.no_such", "1")


def test_a_preset_says_where_it_comes_from(chosen: Preset) -> None:
    assert chosen.source and chosen.status in ("published", "adapted", "reconstructed")
    assert chosen.uncertain or chosen.status == "published"


def test_names() -> None:
    assert methods() == sorted(PRESETS)
    for name in methods():
        assert method(name) == preset(name).method == PRESETS[name]().method
        assert PRESETS[name].__doc__
    with pytest.raises(Exception, match='did you mean "simclr"'):
        preset("simcrl")


def test_a_batch_with_infinite_pictures_changes_nothing(narrow: Preset) -> None:
    state = begin(narrow)
    go(state, narrow, 2)
    before = copies(state)
    views = list(views_of(narrow, 2))
    for bad in (float("nan"), float("inf")):
        for v in range(len(views)):
            broken = copy.deepcopy(views)
            broken[v].images[1, 0, 3, 3] = bad
            done = train_step(
                state,
                narrow.method,
                tuple(broken),
                progress=0.5,
                lr=0.05,
                seed=0,
                precision=Precision("channels_first", "float32", ""),
                device=CPU,
            )
            assert not done.finite and not np.isfinite(done.loss)
            assert same_bits(copies(state), before)
            assert all(p.grad is None for p in state.networks.parameters())
    twin = begin(narrow)
    twin.load(before, 2)
    assert go(twin, narrow, 1) == go(state, narrow, 1)


# What a method refuses, and groups of parameters: contracts of every method, whoever writes it.

PAIR = (View(), View())
CONTRAST = {"contrastive": Term(1.0, InfoNCE())}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"views": (View(),)}, "at least two views"),
        ({"views": (View(seen_by="online"), View(seen_by="online"))}, "no pair"),
        ({"objective": {}}, "no term"),
        ({"negatives": NoNegatives()}, "there are none"),
    ],
)
def test_contradicting_choices_are_refused(fields: dict[str, object], words: str) -> None:
    good = {"views": PAIR, "heads": Heads(), "target": Shared(), "negatives": InBatch(), "objective": CONTRAST}
    Method(**good)
    with pytest.raises(ValueError, match=words):
        Method(**{**good, **fields})


def test_only_trainable_parameters_are_optimised_and_only_matrices_decay(chosen: Preset) -> None:
    state = begin(chosen)
    groups = {p for group in state.optimizer.param_groups for p in group["params"]}
    assert groups == {p for p in state.networks.parameters() if p.requires_grad}
    for group in parameter_groups(state.networks, 0.1):
        assert {p.dim() > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}
    if isinstance(chosen.method.target, Momentum):
        assert state.networks.target is not None
        assert not groups & set(state.networks.target.parameters())


def test_the_cost_that_a_docstring_states_is_the_methods(chosen: Preset) -> None:
    name = next(name for name, make in PRESETS.items() if make() == chosen)
    stated = re.search(r"Cost ([0-9./]+)\.(?:\s|$)", " ".join((PRESETS[name].__doc__ or "").split()) + " ")
    assert stated is not None, f"{name} does not say what it costs"
    over = stated[1].split("/")
    assert encoder_passes(chosen.method) == pytest.approx(float(over[0]) / float(over[-1] if len(over) > 1 else 1), rel=0.02)


def test_no_gradient_reaches_what_stands_still(chosen: Preset) -> None:
    state = begin(chosen)
    loss, _, _, embeddings = compute_loss(chosen.method, state.networks, state.bank, views_of(chosen), 0.5, (0, 0))
    held = chosen.method.target != Shared()
    assert embeddings.target.requires_grad != held
    if embeddings.candidates is not None:
        assert embeddings.candidates.embeddings.requires_grad != held or isinstance(chosen.method.negatives, Queue)
    loss.backward()
    assert all(value.grad is None for value in state.bank.values())


def test_the_combined_method_uses_every_idea_in_twelve_lines() -> None:
    lines = inspect.getsource(PRESETS["combined"]).split('"""')[2].strip().splitlines()
    assert len(lines) <= 12
    told = to_toml(PRESETS["combined"]())
    for idea in ("EqCo", "NearestSmoothing", "RelicInvariance", 'seen_by = "online"', "mask_background = 0.1", "Ramp"):
        assert idea in told, idea


def test_presets_have_no_idle_settings(chosen: Preset) -> None:
    assert chosen.method.idle() == []
    chosen.method.check_batch(chosen.batch_size or 128)


def test_settings_without_effect_are_named() -> None:
    base = method("simclr")
    for changed, words in (
        (replace(method("byol"), negatives=Queue(8)), "no term looks at the negatives (Queue)"),
        (replace(base, objective={"c": Term(1.0, InfoNCE(margin=EqCo(9.0), denominator=Decoupled()))}), "only adds a constant"),
        (replace(base, objective={"c": Term(1.0, InfoNCE(same_view=True))}), "an embedding with itself"),
        (replace(method("relic"), negatives=InBatch(4)), "per_query holds here only with"),
        (replace(base, objective={"i": Term(1.0, RelicInvariance(kl="q||p"))}), "kl changes nothing"),
    ):
        assert words in "; ".join(changed.idle())
    # and they really are: not a bit of a gradient differs
    z = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    plain, shifted = (
        torch.autograd.grad(info_nce(z[0], z[1], temperature=0.2, denominator=Decoupled(), margin=margin), z)[0]
        for margin in (None, EqCo(99.0))
    )
    torch.testing.assert_close(plain, shifted, rtol=1e-12, atol=1e-14)


def test_what_cannot_be_computed_is_refused_when_the_method_is_made() -> None:
    four = Term(1.0, RelicInvariance(convention="four_tensors"))
    with pytest.raises(ValueError, match="fewer than two views are seen by both"):
        replace(method("moco_v2"), objective={"i": four})
    with pytest.raises(ValueError, match="weight is nan"):
        Term(float("nan"), InfoNCE())
    with pytest.raises(ValueError, match="amount is"):
        UniformSmoothing(Steps((0.1, 1.5, 0.1), (0.6, 0.9)))
    with pytest.raises(ValueError, match="momentum is"):
        Momentum(Steps((0.9, 5.0, 0.9), (0.3, 0.6)))
    with pytest.raises(ValueError, match="no negatives in a batch of 1"):
        method("simclr").check_batch(1)
