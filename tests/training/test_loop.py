"""The loop: reports, schedules, skipped batches, and the end of patience."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smallview.errors import DivergedError, DoesNotFitError
from smallview.joint_embedding import Term
from smallview.networks.online_target import Momentum, Networks
from smallview.objectives import InfoNCE, NearestSmoothing
from smallview.presets import preset
from smallview.records import Batch, ViewBatch
from smallview.schedules import Ramp, WarmupCosine
from smallview.training.loop import StepReport, gradient_size, train
from smallview.training.precision import Precision
from smallview.training.state import TrainState

CPU = torch.device("cpu")
PLAIN = Precision("channels_first", "float32", "")


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.norm(self.convolution(images)).relu().mean((2, 3))
        return out


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def begin(name: str = "moco_v2") -> TrainState:
    torch.manual_seed(0)
    chosen = preset(name)
    networks = Networks(Tiny(), 8, chosen.method.heads, chosen.method.target)
    bank = chosen.method.negatives.init(0, chosen.method.heads.projector.out, CPU)
    return TrainState(networks, chosen.optimizer.build(networks, CPU), bank)


def feed(start: int, stop: int, broken: tuple[int, ...] = ()) -> Iterator[tuple[Batch, tuple[ViewBatch, ...]]]:
    for step in range(start, stop):
        source = torch.Generator().manual_seed(step)
        pair = torch.randn(2, 4, 3, 8, 8, generator=source)
        if step in broken:
            pair[0, 2, 1, 3, 3] = float("nan")
        batch = Batch(np.arange(4) + 10 * step, epoch=step // 3, step=step)
        yield batch, (ViewBatch(pair[0], "online"), ViewBatch(pair[1], "target"))


def run(
    state: TrainState, stop: int, total: int = 8, broken: tuple[int, ...] = (), halt: int | None = None
) -> tuple[bool, list[StepReport]]:
    reports: list[StepReport] = []

    def on_step(report: StepReport) -> bool:
        reports.append(report)
        return report.step == halt

    done = train(
        state,
        preset("moco_v2").method,
        feed(state.step, stop, broken),
        total_steps=total,
        lr=WarmupCosine(0.1, 0.25),
        seed=0,
        precision=PLAIN,
        device=CPU,
        on_step=on_step,
    )
    return done, reports


def bits(state: TrainState) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.tensors().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_reports_count_and_the_rate_follows_its_schedule() -> None:
    state = begin()
    done, reports = run(state, 8)
    assert done and state.step == 8 and [r.step for r in reports] == list(range(1, 9))
    assert [r.lr for r in reports] == [WarmupCosine(0.1, 0.25).at(i / 8) for i in range(8)]
    assert reports[0].lr == 0.0 and reports[2].lr == pytest.approx(0.1) and reports[-1].lr < 0.01
    assert [r.progress for r in reports] == [(i + 1) / 8 for i in range(8)]
    assert [len(r.batch.index) for r in reports] == [4] * 8 and [r.batch.epoch for r in reports] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert all(r.seconds > 0 and r.waited >= 0 and r.warning is None and r.done.finite for r in reports)
    assert all(r.done.losses.keys() == {"contrastive"} and r.done.gradient > 0 for r in reports)


def test_features_are_those_of_the_first_online_view_and_change_nothing() -> None:
    state, twin = begin(), begin()
    _, (report,) = run(state, 1)
    features = report.done.features
    assert features is not None and features.shape == (4, 8) and not features.requires_grad
    _, views = next(feed(0, 1))
    torch.testing.assert_close(features, twin.networks.train().online.encoder(views[0].images).detach(), rtol=0, atol=0)


def test_stopping_and_going_on_is_not_stopping() -> None:
    through, stopped = begin(), begin()
    _, wanted = run(through, 8)
    done, first = run(stopped, 8, halt=3)
    assert not done and stopped.step == 3
    resumed = begin()
    resumed.load(bits(stopped), 3)
    done, rest = run(resumed, 8)
    assert done and [r.done.loss for r in first + rest] == [r.done.loss for r in wanted]
    assert same(bits(resumed), bits(through))


def test_a_stop_wish_at_the_last_step_is_still_finished() -> None:
    assert run(begin(), 8, halt=8)[0]


def test_a_feed_that_ends_early_is_not_finished() -> None:
    assert not run(begin(), 5)[0]


def test_a_skipped_batch_changes_nothing_and_is_said() -> None:
    state = begin()
    run(state, 3)
    before = bits(state)
    _, reports = run(state, 4, broken=(3,))
    assert same(bits(state), before) and state.step == 4 and state.skipped == 1
    assert reports[0].warning is not None and "batch skipped (1/3)" in reports[0].warning and "step 4" in reports[0].warning
    assert reports[0].batch.index.tolist() == [30, 31, 32, 33]
    assert not np.isfinite(reports[0].done.loss)
    run(state, 5)
    assert state.skipped == 0 and not same(bits(state), before)


def test_two_in_a_row_are_borne_and_the_third_ends_it() -> None:
    state = begin()
    done, reports = run(state, 8, broken=(2, 3, 5, 6))
    assert done and sum(r.warning is not None for r in reports) == 4
    state = begin()
    run(state, 2)
    before = bits(state)
    with pytest.raises(DivergedError, match="3 times in a row"):
        run(state, 8, broken=(2, 3, 4))
    assert same(bits(state), before)


def test_the_count_of_skipped_batches_is_resumed() -> None:
    state = begin()
    run(state, 2, broken=(0, 1))
    resumed = begin()
    resumed.load(bits(state), state.step, state.skipped)
    with pytest.raises(DivergedError):
        run(resumed, 8, broken=(2,))


@pytest.mark.parametrize("name", ["simclr", "byol"])
def test_a_gradient_that_is_not_finite_changes_nothing_either(name: str) -> None:
    """The loss is finite, only one weight's gradient is not."""
    state = begin(name)
    state.networks.online.encoder.convolution.weight.register_hook(lambda g: g * float("inf"))
    before = bits(state)
    method = preset(name).method
    (_, views) = next(feed(0, 1))
    reports: list[StepReport] = []
    both = tuple(ViewBatch(v.images, "both") for v in views)
    train(
        state,
        method,
        [(Batch(np.arange(4), 0, 0), both)],
        total_steps=2,
        lr=0.1,
        seed=0,
        precision=PLAIN,
        device=CPU,
        on_step=lambda r: bool(reports.append(r)),
    )
    assert np.isfinite(reports[0].done.loss) and reports[0].warning is not None
    assert same(bits(state), before)


def test_dropout_draws_by_seed_and_step_alone() -> None:
    def losses(noise: int) -> list[float]:
        state = begin()
        state.networks.online.encoder = nn.Sequential(state.networks.online.encoder, nn.Dropout(0.5))
        torch.manual_seed(noise)
        return [r.done.loss for r in run(state, 3)[1]]

    assert losses(1) == losses(2)


class Heard:
    """A schedule that notes when it was asked, once the run has begun."""

    def __init__(self, value: float) -> None:
        self.value, self.asked = value, list[float]()

    def at(self, progress: float) -> float:
        self.asked.append(progress)
        return self.value


def test_every_schedule_hears_the_progress_of_every_step() -> None:
    """A momentum that is set on the wrapper and never reaches the module trains as if nothing were wrong; a known bug of a public code."""
    momentum, temperature, amount, weight, lr = Heard(0.9), Heard(0.2), Heard(0.1), Heard(1.0), Heard(0.01)
    chosen = preset("moco_v2").method
    loss = InfoNCE(temperature, soft_targets=NearestSmoothing(amount, nearest=3))  # type: ignore[arg-type]
    method = replace(chosen, target=Momentum(momentum), objective={"contrastive": Term(weight, loss)})  # type: ignore[arg-type]
    state = begin()
    state.networks.rule = method.target
    everyone = (momentum, temperature, amount, weight, lr)
    for heard in everyone:
        heard.asked.clear()  # what the values' own checks asked
    train(
        state,
        method,
        feed(0, 4),
        total_steps=8,
        lr=lr,  # type: ignore[arg-type]
        seed=0,
        precision=PLAIN,
        device=CPU,
        on_step=lambda report: False,
    )
    for heard in everyone:
        assert sorted(set(heard.asked)) == [0.0, 0.125, 0.25, 0.375]


def test_the_targets_momentum_changes_as_training_goes_on() -> None:
    state = begin()
    state.networks.rule = Momentum(Ramp(0.0, 1.0, until=0.5), reference_steps=16)
    assert state.networks.target is not None
    for step in range(6):
        before = [p.detach().clone() for p in state.networks.target.parameters()]
        train(
            state,
            preset("moco_v2").method,
            feed(step, step + 1),
            total_steps=8,
            lr=0.05,
            seed=0,
            precision=PLAIN,
            device=CPU,
            on_step=lambda report: False,
        )
        keep = min(step / 8 / 0.5, 1.0) ** 2  # 16 steps' worth in 8
        for old, new, online in zip(
            before, state.networks.target.parameters(), state.networks.online.parameters(), strict=True
        ):
            torch.testing.assert_close(new, keep * old + (1.0 - keep) * online, rtol=1e-5, atol=1e-6)


class Tight(nn.Module):
    """An encoder for which memory does not suffice at some of its calls, after it has moved its statistics."""

    def __init__(self, fails: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.fails, self.calls = Tiny(), fails, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += torch.is_grad_enabled()
        out: Tensor = self.inner(images)
        if torch.is_grad_enabled() and self.calls in self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return out


def tight(fails: tuple[int, ...] = ()) -> TrainState:
    torch.manual_seed(0)
    chosen = preset("moco_v2")
    networks = Networks(Tight(fails), 8, chosen.method.heads, chosen.method.target)
    bank = chosen.method.negatives.init(0, chosen.method.heads.projector.out, CPU)
    return TrainState(networks, chosen.optimizer.build(networks, CPU), bank)


@pytest.mark.parametrize("fails", [(1,), (4,)])
def test_a_step_that_does_not_fit_is_done_again_with_less_memory_and_the_same_bits(fails: tuple[int, ...]) -> None:
    whole, small = tight(), tight(fails)
    wanted = [r.done.loss for r in run(whole, 8)[1]]
    said: list[str] = []
    losses: list[float] = []
    train(
        small,
        preset("moco_v2").method,
        feed(0, 8),
        total_steps=8,
        lr=WarmupCosine(0.1, 0.25),
        seed=0,
        precision=PLAIN,
        device=CPU,
        on_step=lambda r: bool(losses.append(r.done.loss)),
        say=said.append,
    )
    assert losses == wanted and same(bits(small), bits(whole))
    assert len(said) == 1 and "a batch of 4 does not fit into memory; activations are computed again" in said[0]


def test_what_does_not_fit_in_any_way_ends_with_advice_and_nothing_changed() -> None:
    state = tight((1, 2, 3))
    before = bits(state)
    with pytest.raises(
        DoesNotFitError, match="a batch of 4 does not fit into memory, and in pieces the statistics of BatchNorm"
    ):
        run(state, 8)
    assert same(bits(state), before) and all(p.grad is None for p in state.networks.parameters())


def test_passes_that_were_asked_for_stay() -> None:
    state = tight((1,))
    with pytest.raises(DoesNotFitError):
        train(
            state,
            preset("moco_v2").method,
            feed(0, 8),
            total_steps=8,
            lr=0.1,
            seed=0,
            precision=PLAIN,
            device=CPU,
            on_step=lambda r: False,
            make_do=False,
        )


def test_an_update_that_does_not_fit_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the weights may have moved."""
    state = begin()

    def step() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(state.optimizer, "step", step)
    with pytest.raises(DoesNotFitError):
        run(state, 8)
    assert state.step == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_shows_in_the_size_of_all(bad: float) -> None:
    layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert float(gradient_size(layers.parameters())) == 0.0  # none at all
    layers(torch.ones(2, 3)).sum().backward()
    assert 0.0 < float(gradient_size(layers.parameters())) < 100.0
    assert layers[1].bias.grad is not None
    layers[1].bias.grad[1] = bad
    assert not np.isfinite(float(gradient_size(layers.parameters())))
