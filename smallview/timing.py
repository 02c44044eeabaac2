"""What a step takes on this machine, from a few real ones that the run knows nothing of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import fmean, median_high

from smallview import collectives
from smallview.config import RunConfig, steps_per_epoch
from smallview.data.loading import batches
from smallview.parts import Parts, views_ahead
from smallview.records import Batch
from smallview.training.loop import StepReport, train
from smallview.training.state import TrainState

WARMUP_STEPS, CALIBRATION_STEPS = 2, 6
Say = Callable[[str], None]


def calibrate(parts: Parts, minutes: float, say: Say) -> int:
    """Steps that fit the minutes, from `seconds_of_step`."""
    config = parts.config
    step = seconds_of_step(parts)
    steps = max(1, int(60.0 * minutes / step))
    epochs = steps / steps_per_epoch(len(parts.pack), config.batch_size)
    say(f"{1000 * step:.0f} ms a step: {steps:,} steps ({epochs:.1f} epochs) fit {minutes:g} minutes; fixed from here on")
    return steps


def seconds_of_step(parts: Parts, most: float = 20.0) -> float:
    """What a step takes: a few real ones on a copy of the state are timed, for `most` seconds or little more, and the run is not touched.

    Where views change their size, the timed steps lie evenly over the training, each the second of its size, and their mean counts: the first
    of a size that the kernels have not seen is far slower.
    """
    config = parts.config
    state = copy.deepcopy(parts.state.networks)
    trial = TrainState(state, config.optimizer.build(state, parts.device), dict(parts.state.bank))
    steady = _steady(config)
    times: list[float] = []

    def on_step(report: StepReport) -> bool:
        times.append(report.seconds)
        return steady and len(times) > WARMUP_STEPS and sum(times) > most and collectives.world() == 1

    train(
        trial,
        config.method,
        views_ahead(parts.maker, config.batch_size, trial_batches(parts)),
        total_steps=WARMUP_STEPS + CALIBRATION_STEPS * (1 if steady else 2),
        lr=0.0,
        seed=config.seed,
        precision=parts.precision,
        device=parts.device,
        on_step=on_step,
    )
    counted = times[WARMUP_STEPS:]
    return float(collectives.tell(str(median_high(counted) if steady else fmean(counted[1::2]))))


def trial_batches(parts: Parts) -> Iterator[Batch]:
    """The batches that are timed: after the warm-up, one from the middle of each equal part of the training, or two of a size."""
    config, alike = parts.config, 1 if _steady(parts.config) else 2
    count = WARMUP_STEPS + CALIBRATION_STEPS * alike
    for batch in batches(len(parts.pack), config.batch_size, config.seed, 0, count):
        part = (max(0, batch.step - WARMUP_STEPS) // alike + 0.5) / CALIBRATION_STEPS
        yield replace(batch, progress=config.span[0] + (config.span[1] - config.span[0]) * part)


def _steady(config: RunConfig) -> bool:
    return all(view.size is None or isinstance(view.size, (int, float)) for view in config.method.views)
