"""The loop: one state, one step, until the steps are done or someone asks to stop.

Legend: B images, D embedding dimensions; progress in [0, 1].
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from smallview import collectives
from smallview.errors import DivergedError, DoesNotFitError
from smallview.joint_embedding import Method, compute_loss
from smallview.records import Batch, ViewBatch
from smallview.schedules import Schedule, resolve
from smallview.seeds import derive
from smallview.training.memory import advice, lighter, out_of_memory
from smallview.training.precision import Precision
from smallview.training.state import TrainState

MOST_SKIPPED = 3


@dataclass(frozen=True)
class Stepped:
    """What one step computed: the loss and its terms, the size of the gradients, whether all was finite, features [B, F] of a view."""

    loss: float
    losses: dict[str, float]
    gradient: float
    finite: bool
    features: Tensor | None


@dataclass(frozen=True)
class StepReport:
    """What one step did: its batch, the numbers that it came to, seconds spent and seconds waited for data."""

    step: int
    batch: Batch
    progress: float
    lr: float
    done: Stepped
    seconds: float
    waited: float
    warning: str | None = None


def train_step(
    state: TrainState,
    method: Method,
    views: tuple[ViewBatch, ...],
    *,
    progress: float,
    lr: float,
    seed: int,
    total_steps: int = 1,
    precision: Precision,
    device: torch.device,
) -> Stepped:
    """One step of any method: loss, backward, optimizer, target follows.

    A loss or gradient that is not finite changes nothing: weights, BatchNorm statistics and bank stay as they were.

    Raises:
        DoesNotFitError: memory does not suffice for the passes; nothing has changed.
    """
    torch.manual_seed(derive(seed, "step", state.step) + collectives.rank())  # for layers that draw, such as dropout
    views = tuple(ViewBatch(v.images.contiguous(memory_format=precision.memory_format), v.seen_by) for v in views)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    kept = [torch.empty_like(buffer) for buffer in state.buffers]
    _copy(kept, state.buffers)  # one NaN in a running average would stay there for good
    fits = True
    try:
        with precision.autocast(device):
            loss, losses, bank, embeddings = compute_loss(method, state.model, state.bank, views, progress, (seed, state.step))
        loss.backward()
    except Exception as error:
        _copy(state.buffers, kept)
        state.optimizer.zero_grad(set_to_none=True)
        if not out_of_memory(error):
            raise
        fits = False
    if not fits:  # raised out here, for the error's own trace holds all that filled the memory
        raise DoesNotFitError(advice(state.networks, len(views[0].images) * collectives.world()))
    # everything that is told comes back at once: a GPU waits for Python as often as it is asked
    exact = torch.float32 if device.type == "mps" else torch.float64
    size = gradient_size(state.trained(), device)
    value, slope, *terms = torch.stack([x.detach().to(exact) for x in (loss, size, *losses.values())]).tolist()
    finite = math.isfinite(value) and math.isfinite(slope)
    if finite:
        state.optimizer.step()
        state.networks.follow(progress, total_steps)
        state.bank = bank
    else:
        _copy(state.buffers, kept)
    state.optimizer.zero_grad(set_to_none=True)
    return Stepped(value, dict(zip(losses, terms, strict=True)), slope, finite, embeddings.features)


@torch.no_grad()
def gradient_size(parameters: Iterable[Tensor], device: torch.device | None = None) -> Tensor:
    """The sum of every gradient's Euclidean norm, a scalar on their device; not finite where any of them is not."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return torch.stack(torch._foreach_norm(grads)).sum() if grads else torch.zeros((), device=device)


def _in_memory(step: Callable[[], Stepped], state: TrainState, batch_size: int, say: Callable[[str], None]) -> Stepped:
    """What the step gives; where memory does not suffice, with passes that take less."""
    while True:
        try:
            return step()
        except DoesNotFitError:
            # of several processes, the others are in the middle of the step and wait
            told = lighter(state.networks, batch_size) if collectives.world() == 1 else None
            if told is None:
                raise
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise DoesNotFitError(advice(state.networks, batch_size)) from None
        say(told)


@torch.no_grad()
def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    """Tensor by tensor, in one launch for each type of number: a list of several types would take one for each tensor."""
    for dtype in {x.dtype for x in source}:
        torch._foreach_copy_([a for a in to if a.dtype == dtype], [b for b in source if b.dtype == dtype])


def train(
    state: TrainState,
    method: Method,
    feed: Iterable[tuple[Batch, tuple[ViewBatch, ...]]],
    *,
    total_steps: int,
    lr: float | Schedule,
    seed: int,
    precision: Precision,
    device: torch.device,
    on_step: Callable[[StepReport], bool],
    say: Callable[[str], None] = lambda message: None,
    make_do: bool = True,
    span: tuple[float, float] = (0.0, 1.0),
) -> bool:
    """Train until `total_steps`; `on_step` sees every report and returns True to stop. -> whether it was finished.

    feed yields (Batch, views) from `state.step` on; of several processes, each has its own part of the views. A step whose numbers are
    not finite is skipped and said; the third in a row raises DivergedError. Where memory does not suffice and `make_do`, the networks are called in
    a way that takes less, and `say` is told; DoesNotFitError where none is left. span: the part of a longer training that this is.
    """
    begin, end = span
    longer = max(1, round(total_steps / (end - begin)))
    state.networks.train()
    before = time.perf_counter()
    for batch, views in feed:
        waited = time.perf_counter() - before
        progress = begin + (end - begin) * (state.step / total_steps)
        rate = resolve(lr, progress)
        step = partial(train_step, state, method, views, progress=progress, lr=rate, seed=seed, total_steps=longer)
        step = partial(step, precision=precision, device=device)
        done = _in_memory(step, state, len(batch.index), say) if make_do else step()
        state.skipped = 0 if done.finite else state.skipped + 1
        state.step += 1
        skipped = f"step {state.step:,}: the loss or a gradient is not finite; batch skipped ({state.skipped}/{MOST_SKIPPED})"
        now = time.perf_counter()
        report = StepReport(
            step=state.step,
            batch=batch,
            progress=state.step / total_steps,
            lr=rate,
            done=done,
            seconds=now - before,
            waited=waited,
            warning=None if done.finite else skipped,
        )
        stop = collectives.any_of(on_step(report))
        if state.skipped >= MOST_SKIPPED:
            raise DivergedError(
                f"step {state.step:,}: the loss was not finite {MOST_SKIPPED} times in a row; the last good checkpoint is kept; "
                "start anew with --fresh and a lower --set optimizer.lr"
            )
        if stop and state.step < total_steps:
            return False
        before = now
    return state.step >= total_steps
