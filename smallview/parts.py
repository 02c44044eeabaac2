"""What a run is made of once its settings are known: networks, optimizer, state and views, all from the seed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from smallview.config import RunConfig, steps_per_epoch
from smallview.data.loading import batches, channel_statistics
from smallview.data.packing import Pack
from smallview.errors import UsageError
from smallview.networks.encoders import EncoderConfig, build_encoder, describe
from smallview.networks.online_target import Networks
from smallview.optimizers import scaled_lr
from smallview.records import Batch, ViewBatch
from smallview.schedules import WarmupCosine
from smallview.seeds import derive
from smallview.training.loop import StepReport, TrainState, train, train_step
from smallview.training.precision import Precision, choose_device, cpu_flags, fixed_rule, probe
from smallview.training.prefetch import ahead
from smallview.views.making import ViewMaker

CALIBRATION_STEPS = 6
Say = Callable[[str], None]


@dataclass
class Parts:
    """What a run is made of once its settings are known."""

    config: RunConfig
    pack: Pack
    state: TrainState
    encoder_config: EncoderConfig
    precision: Precision
    device: torch.device
    maker: ViewMaker

    def feed(self, start: int, stop: int) -> Iterator[tuple[Batch, tuple[ViewBatch, ...]]]:
        """(Batch, views) of the steps start to stop - 1, views made ahead."""
        return ahead(self.maker, batches(len(self.pack), self.config.batch_size, self.config.seed, start, stop))

    def lr(self) -> WarmupCosine:
        """The learning rate of the run: up, then down to zero within it."""
        optimizer = self.config.optimizer
        return WarmupCosine(scaled_lr(optimizer.lr, self.config.batch_size), optimizer.warmup)


def build(config: RunConfig, pack: Pack, encoder: str | nn.Module | None, say: Say) -> tuple[RunConfig, Parts]:
    """Networks, optimizer, state and views, all from the seed; layout and dtype by the rule, the record, or the probe."""
    device = choose_device(config.device)
    torch.set_num_threads(config.threads)
    if isinstance(encoder, nn.Module):
        net: nn.Module = copy.deepcopy(encoder)
        described = describe(net, in_channels=pack.channels, size=config.size)
    else:
        if config.encoder.startswith("custom:"):
            raise UsageError(
                f"the encoder is a module of your own ({config.encoder[7:]}); pass it: pretrain(data, encoder=module)"
            )
        net, described = build_encoder(
            config.encoder, in_channels=pack.channels, size=config.size, stem=config.stem, seed=derive(config.seed, "encoder")
        )
    if config.stem == "auto" and described.stem == "small":
        say(
            f"{config.encoder} with the small-image stem: the final map of {config.size}-pixel views would be under 4x4 (--stem standard keeps it)"
        )
    mean, std = channel_statistics(pack, config.seed)
    described = replace(described, mean=tuple(round(float(m), 6) for m in mean), std=tuple(round(float(s), 6) for s in std))
    if pack.channels != 3 and any(
        (view.jitter and (view.saturation or view.hue)) or view.grayscale for view in config.method.views
    ):
        say(f"pictures have {pack.channels} channel{'s' * (pack.channels != 1)}: saturation, hue and grayscale are left out")

    def fresh(precision: Precision) -> TrainState:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(config.seed, "heads"))
            networks = Networks(copy.deepcopy(net), described.features, config.method.heads, config.method.target)
        precision.place(networks, device)
        bank = config.method.negatives.init(config.seed, config.method.heads.projector.out, device)
        return TrainState(networks, config.optimizer.build(networks, device), bank)

    maker = ViewMaker(pack, config.method.views, config.size, described.mean, described.std, config.seed, device, threads=1)
    rule = fixed_rule(net, device, cpu_flags())
    precision = rule
    if config.probe and config.steps is None:
        first = next(iter(batches(len(pack), config.batch_size, config.seed, 0, 1)))
        views = maker(first)
        arms: dict[tuple[str, str], TrainState] = {}

        def step(arm: Precision) -> None:
            state = arms.setdefault((arm.layout, arm.dtype), fresh(arm))
            train_step(state, config.method, views, progress=0.5, lr=0.0, seed=config.seed, precision=arm, device=device)

        precision = probe(step, device)
        say(precision.reason)
    layout = precision.layout if config.layout == "auto" or (config.probe and config.steps is None) else config.layout
    dtype = precision.dtype if config.dtype == "auto" or (config.probe and config.steps is None) else config.dtype
    if (layout, dtype) != (precision.layout, precision.dtype):
        precision = Precision(layout, dtype, "given")  # type: ignore[arg-type]
    config = replace(config, stem=described.stem, layout=layout, dtype=dtype)
    return config, Parts(config, pack, fresh(precision), described, precision, device, maker)


def calibrate(parts: Parts, minutes: float, say: Say) -> int:
    """Steps that fit the minutes: a few real steps on a copy of the state are timed, and the run is not touched."""
    config = parts.config
    state = copy.deepcopy(parts.state.networks)
    trial = TrainState(state, config.optimizer.build(state, parts.device), dict(parts.state.bank))
    times: list[float] = []

    def on_step(report: StepReport) -> bool:
        times.append(report.seconds)
        return False

    count = 2 + CALIBRATION_STEPS
    train(
        trial,
        config.method,
        parts.feed(0, count),
        total_steps=count,
        lr=0.0,
        seed=config.seed,
        precision=parts.precision,
        device=parts.device,
        on_step=on_step,
    )
    middle = sorted(times[2:])[len(times[2:]) // 2]
    steps = max(1, int(60.0 * minutes / middle))
    epochs = steps / steps_per_epoch(len(parts.pack), config.batch_size)
    say(f"{1000 * middle:.0f} ms a step: {steps:,} steps ({epochs:.1f} epochs) fit {minutes:g} minutes; fixed from here on")
    return steps
