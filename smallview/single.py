"""One training from its settings to a saved encoder: a run of its own, or one stage of a run."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from smallview.beside import Beside
from smallview.choosing import part_of
from smallview.collectives import rank, tell, wait_for_all, world
from smallview.config import RunConfig, pictures_of_epoch, steps_per_epoch, total_steps
from smallview.continuing import Origin, check_same_weights, finished, write_config
from smallview.data.pack import Pack
from smallview.data.sources import Source
from smallview.errors import DataError, UsageError
from smallview.evaluation.features import recalibrate, weights_hash
from smallview.files import write_text
from smallview.foregrounds import Masks, check_same_masks, foregrounds_of
from smallview.networks.encoders import load_encoder, save_encoder
from smallview.parts import Parts, build
from smallview.pictures import changed_pictures, decoded, record_pictures, telling
from smallview.records import Foregrounds, Row
from smallview.settings import from_tables, load_toml, to_tables
from smallview.timing import calibrate, seconds_of_step
from smallview.training import checkpoint
from smallview.training.cost import forward_macs, peak_memory
from smallview.training.handover import Ended
from smallview.training.log import Logger, read_jsonl
from smallview.training.loop import train
from smallview.training.precision import keep_big_blocks, numerics
from smallview.training.processes import in_turn
from smallview.training.progress import clock
from smallview.views.making import centre_part
from smallview.views.view import pixels

LEAST_FORECAST = 100  # steps
BESIDE_STEPS = 1.015  # looks, saves and log
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its rows so far, and the encoder in evaluation mode."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    encoder: nn.Module = field(default_factory=nn.Identity, repr=False)


@dataclass(frozen=True)
class Call:
    """What the caller passed that is no setting."""

    data: Any
    encoder: str | nn.Module | None
    masks: Masks | None
    accept_data_change: bool
    quiet: bool
    command: Callable[[Path], str] | None
    say: Say
    loggers: Sequence[Logger]

    def of_part(self, positions: npt.NDArray[np.int64], whole: int) -> Call:
        """The same for some of the pictures: masks that are an array of all become those of the part."""
        if isinstance(self.masks, np.ndarray) and len(self.masks) == whole:
            return replace(self, masks=self.masks[positions])
        return self


@dataclass(frozen=True)
class Link:
    """A training as stage `number` of `count`, from 1, of a run with this seed, whose pictures are packed once for all stages, and whose
    encoder is made for pictures of `size`. before: the stage that it takes over from. data_of: the folder of one that saw the same pictures.
    changed: where there is none, in what all the pictures differ from those that the run began with.
    """

    number: int
    count: int
    seed: int
    short_side: int
    size: int
    before: Ended | None
    data_of: Path | None = None
    changed: str = ""

    @property
    def name(self) -> str:
        """As it is said."""
        return f"stage {self.number} of {self.count}"


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on: what process 0 found out, and the others are told."""

    config: RunConfig
    folder: Path
    began: bool
    as_it_is: bool
    batch_given: bool
    origin: Origin | None
    source: Source | None = None
    link: Link | None = None

    @staticmethod
    def told(start: Start | None) -> Start:
        """The start of process 0, on every process."""
        text = ""
        if start is not None:
            origin = None if start.origin is None else [str(start.origin.folder), start.origin.step]
            flags = [start.began, start.as_it_is, start.batch_given]
            text = json.dumps([to_tables(start.config), str(start.folder), *flags, origin])
        text = tell(text)
        if start is not None:
            return start
        tables, folder, began, as_it_is, batch_given, origin = json.loads(text)
        known = None if origin is None else Origin(Path(origin[0]), origin[1])
        return Start(from_tables(RunConfig, tables), Path(folder), began, as_it_is, batch_given, known)


def as_it_is(folder: Path, encoder: str | nn.Module | None, say: Say) -> Run:
    """The finished run in this folder."""
    say(f"{folder} is finished; --fresh starts anew")
    net, _ = load_encoder(folder, into=copy.deepcopy(encoder) if isinstance(encoder, nn.Module) else None)
    return Run(folder, rows_of(folder), net)


def run_training(source: Source, start: Start, call: Call) -> Run:
    """Train from the beginning, from a checkpoint, or from what the stage before has left."""
    keep_big_blocks()
    config, folder, began, say = start.config, start.folder, start.began, call.say
    link, leads, whole = start.link, rank() == 0, len(source)
    if config.subset is not None:
        seed = config.seed if link is None else link.seed
        all_of_them = source
        source, chosen = in_turn(lambda: part_of(all_of_them, config, seed, folder if leads else None, say))
        call = call.of_part(chosen, whole)
    pack = in_turn(lambda: decoded(source, config, folder if leads else None, say, None if link is None else link.short_side))
    if tell(pack.hash) != pack.hash:
        raise DataError(
            f"process {rank()} reads other pictures in {source.name} than process 0; wanted the same on all machines"
        )
    origin = start.origin
    data_of = folder if began else origin.folder if origin is not None else None if link is None else link.data_of
    changed = "" if link is None else link.changed
    if data_of is not None:
        changed = changed_pictures(data_of, source, pack, call.accept_data_change)
    if began and finished(folder):
        return as_it_is(folder, call.encoder, say)
    config = _batch_that_fits(config, pack, source, start)
    found = in_turn(lambda: foregrounds_of(pack, config, call.masks, say, telling("masking", say)))
    if data_of is not None and not changed:
        check_same_masks(data_of, found)
    with numerics(config.tf32, config.deterministic):
        before = None if link is None else link.before
        config, parts = build(config, pack, call.encoder, say, found, before, None if link is None else link.size)
        parts.part = len(source) / whole
        if began:
            check_same_weights(folder, parts.weights)
        say(f"pictures and views take {math.ceil(parts.memory() / 2**20):,} MiB of memory")
        loaded = _load(start, say)
        counted = pictures_of_epoch(config, len(pack), whole)
        if config.steps is None:
            steps = total_steps(config, counted) if config.minutes is None else calibrate(parts, config.minutes, say)
            config = parts.config = replace(config, steps=int(tell(str(steps))))
        steps = total_steps(config, counted)
        at = 0 if loaded is None else loaded[0]
        if changed:
            say(
                f"the pictures changed since {data_of or 'the run'} began: {changed}; going on with them as they are now, as run.toml records"
            )
            changed = f"step {at}: {changed}"
        forecast = _forecast(parts, steps, say) if not began and start.origin is None else {}
        if leads:
            if changed or not began:
                write_config(folder, config, {**_recorded(pack, found, parts, start, at), **forecast}, changed)
            if start.origin is not None and not began and (start.origin.folder / "metrics.jsonl").exists():
                shutil.copyfile(start.origin.folder / "metrics.jsonl", folder / "metrics.jsonl")
            record_pictures(folder, source, pack, config)  # equal pictures too: files that were copied back have other times
        wait_for_all()
        beside = Beside(parts, folder, steps, quiet=call.quiet, command=call.command, loggers=call.loggers)
        if loaded is not None:
            _, tensors, extra, notes = loaded
            for note in notes:
                say(note)
            parts.state.load(tensors, at, int(extra.get("skipped", 0)))
            beside.load(extra)
            say(f"resuming at step {at:,} of {steps:,}")
        elif began:
            say(f"resuming at step 0 of {steps:,}: no checkpoint had been written")
        _train(parts, steps, beside)
        return _finish(parts, folder, steps, beside, say)


def _forecast(parts: Parts, steps: int, say: Say) -> dict[str, float]:
    """What the run will cost, said and recorded before it begins: seconds from a few timed steps, memory as it was during these.

    Short runs are not forecast: the timed steps would take a good part of them.
    """
    if steps < LEAST_FORECAST:
        return {}
    step = seconds_of_step(parts, most=5.0)
    seconds = step * steps * BESIDE_STEPS
    memory = peak_memory(parts.device) / 2**20
    flops = parts.flops() * parts.config.batch_size * steps
    epochs = steps / steps_per_epoch(len(parts.pack), parts.config.batch_size)
    at_224 = parts.epochs_224(epochs)
    equal = "" if at_224 is None else f", as many as {at_224:.3g} epochs at 224 px"
    say(
        f"{steps:,} steps ({epochs:.4g} epochs) will take about {clock(seconds)} and {memory / 1024:.1f} GiB of memory; "
        f"{flops:.2g} floating-point operations{equal}"
    )
    return {"forecast_seconds": round(seconds, 1), "forecast_memory_mib": round(memory)}


def _batch_that_fits(config: RunConfig, pack: Pack, source: Source, start: Start) -> RunConfig:
    """The settings with a batch that the readable pictures can fill."""
    if config.batch_size <= len(pack):
        return config
    few = f"batch_size is {config.batch_size:,} and {source.name} has {len(pack):,} readable pictures; "
    if start.began:
        raise UsageError(
            f"{few}the batch is a setting of the run: bring pictures back, or add --fresh with --batch-size {len(pack)}"
        )
    if start.batch_given:
        raise UsageError(f"{few}wanted at most that: --batch-size {len(pack)}")
    # the default was all pictures, and some proved unreadable
    return replace(config, batch_size=max(world(), len(pack) - len(pack) % world()))


def _recorded(pack: Pack, found: Foregrounds | None, parts: Parts, start: Start, at: int) -> dict[str, Any]:
    """What run.toml tells beside the settings."""
    origin, link = start.origin, start.link
    return {
        "data_hash": pack.hash,
        "pictures": len(pack),
        "centre": centre_part(pack, parts.config.size),
        **({} if found is None else {"masks_hash": found.hash, "masks_share": round(float(found.usable.mean()), 4)}),
        **({} if origin is None else {"resumed_from": f"step {at} of {origin.folder}"}),
        **({} if link is None else {"stage": link.number, "stages": link.count}),
        **({} if parts.weights is None else {"weights_sha256": parts.weights}),
        **({} if parts.covered is None else {"weights_covered": f"{parts.covered.covered} of {parts.covered.wanted} tensors"}),
        "precision": parts.precision.reason,
    }


def _load(start: Start, say: Say) -> checkpoint.Loaded | None:
    """The checkpoint to go on from, the same on every process: process 0 chooses."""
    own = start.folder / "checkpoints"
    loaded, place = None, own
    if rank() == 0:
        checkpoint.sweep(own)
        loaded = checkpoint.load_latest(own) if start.began else None
        if loaded is None and start.origin is not None:
            place = start.origin.folder / "checkpoints"
            step = start.origin.step
            loaded = checkpoint.load_latest(place) if step is None else checkpoint.load_step(place, step)
            if loaded is None:
                raise UsageError(f"{start.origin.folder} has no checkpoint; wanted a run that saved one")
            say(f"starting from step {loaded[0]:,} of {start.origin.folder}")
    chosen = json.loads(tell(json.dumps([str(place), None if loaded is None else loaded[0]])))
    if rank() > 0 and chosen[1] is not None:
        return checkpoint.load_step(Path(chosen[0]), chosen[1])
    return loaded


def _train(parts: Parts, steps: int, beside: Beside) -> None:
    """Train to the last step; what is due beside the steps is done after each of them."""
    config, state = parts.config, parts.state
    if state.step >= steps:
        return
    with beside:
        done = train(
            state,
            config.method,
            parts.feed(state.step, steps, steps, beside.progress.say if beside.leads else None),
            total_steps=steps,
            lr=parts.lr(),
            seed=config.seed,
            precision=parts.precision,
            device=parts.device,
            on_step=beside.on_step,
            say=beside.progress.say,
            make_do=config.memory == "auto",
            span=config.span,
        )
        beside.end(done)


def _finish(parts: Parts, folder: Path, steps: int, beside: Beside, say: Say) -> Run:
    """The encoder, and what it cost, into the run folder."""
    config, encoder_config = parts.config, parts.encoder_config
    encoder = parts.state.networks.online.encoder
    last = {pixels(view.size, config.size, 1.0) for view in config.method.views}
    if config.size not in last:  # views were never, or not in the end, as large as pictures will be
        encoder = copy.deepcopy(encoder).to("cpu").to(memory_format=torch.contiguous_format)
        recalibrate(encoder, encoder_config, parts.pack)
        say(
            f"the last views had {max(last)} px: for pictures of {config.size} px the encoder has got the BatchNorm statistics of such"
        )
    if rank() == 0:
        epochs = steps / steps_per_epoch(len(parts.pack), config.batch_size)
        at_224 = parts.epochs_224(epochs)
        recorded = load_toml(folder / "run.toml").get("recorded", {})
        forecast = {name: recorded[name] for name in ("forecast_seconds", "forecast_memory_mib") if name in recorded}
        cost = {
            **beside.summary(),
            **forecast,
            "steps": steps,
            "epochs": round(epochs, 2),
            **({} if at_224 is None else {"epochs_224": float(f"{at_224:.4g}")}),
            "images": steps * config.batch_size,
            "forward_mmacs": round(forward_macs(encoder, encoder_config.in_channels, encoder_config.size) / 1e6, 2),
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "threads": config.threads,
            "processes": world(),
        }
        save_encoder(encoder, encoder_config, folder / "encoder")
        summary = {
            "finished": True,
            "seed": config.seed,
            "method": config.preset,
            "encoder": config.encoder,
            "encoder_sha256": weights_hash(encoder),
            "cost": cost,
        }
        write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        expected = f" ({clock(forecast['forecast_seconds'])} were forecast)" if "forecast_seconds" in forecast else ""
        say(
            f"finished: {steps:,} step{'s' * (steps != 1)} in {clock(cost['train_seconds'])}{expected}; "
            f"the encoder is in {folder / 'encoder'}"
        )
    return Run(folder, rows_of(folder), encoder.to("cpu").to(memory_format=torch.contiguous_format).eval())


def rows_of(folder: Path) -> list[Row]:
    """The rows that a run has been judged by so far."""
    path = folder / "rows.jsonl"
    return [Row(**record) for record in read_jsonl(path)] if path.exists() else []
