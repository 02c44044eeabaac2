"""The story of one run: from data to a saved encoder, and from an encoder to report rows."""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smallview import config as configuration
from smallview.beside import Beside
from smallview.collectives import rank, tell, wait_for_all, world
from smallview.config import RunConfig, steps_per_epoch, total_steps
from smallview.continuing import (
    Origin,
    check_same_weights,
    finished,
    going_on,
    origin_of,
    stored_config,
    tell_other_processes,
    write_config,
)
from smallview.data.pack import Pack
from smallview.data.sources import Source, open_source
from smallview.errors import DataError, UsageError
from smallview.evaluation.features import weights_hash
from smallview.files import check_folder, write_text
from smallview.foregrounds import Masks, check_masks, check_same_masks, foregrounds_of, settings_with_masks
from smallview.networks.encoders import load_encoder, save_encoder
from smallview.parts import Parts, build, calibrate
from smallview.pictures import changed_pictures, decoded, record_pictures, telling
from smallview.records import Foregrounds, Row
from smallview.settings import from_tables, to_tables
from smallview.settings.fitting import printable
from smallview.settle import NO_JPEGS, default_out, kept_threads, next_free, settle
from smallview.training import checkpoint
from smallview.training.cost import forward_macs
from smallview.training.launch import lock_folder, prepare_folder, withdraw_folder
from smallview.training.log import Logger, read_jsonl
from smallview.training.loop import train
from smallview.training.precision import keep_big_blocks, numerics
from smallview.training.processes import in_turn, joined
from smallview.training.progress import clock

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its rows so far, and the encoder in evaluation mode."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    encoder: nn.Module = field(default_factory=nn.Identity, repr=False)


def _quiet(message: str) -> None:
    """Say nothing."""


def say_on_stderr(message: str) -> None:
    """Say it on stderr."""
    print(printable(message), file=sys.stderr, flush=True)


def pretrain(
    data: Any,
    method: str | None = None,
    encoder: str | nn.Module | None = None,
    out: str | Path | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    *,
    masks: Masks | None = None,
    config: str | None = None,
    sets: Mapping[str, object] | None = None,
    fresh: bool = False,
    resume_from: str | Path | None = None,
    accept_data_change: bool = False,
    loggers: Sequence[Logger] = (),
    quiet: bool = False,
    command: Callable[[Path], str] | None = None,
    **settings: Any,
) -> Run:
    """Train an encoder on unlabeled pictures; the same call goes on with an unfinished run.

    data: a folder of pictures or tar shards, a list of paths, `shard-{000..099}.tar`, `hf:NAME`, a uint8 array [N, H, W] or
    [N, H, W, C], a .npy or .npz path, CIFAR .bin or idx files, or any map-style data set.
    encoder: `dense_small`, a timm name, or a module [B, C, S, S] -> [B, F].
    masks: for methods that mask the background, a name (border_colour, centre_prior, spectral_residual, none), encoder:RUN, a folder
    of masks named as the pictures, a function of a batch uint8 [B, C, H, W] to its foregrounds [B, 1, H, W], bool or numbers from 0
    to 1, or all masks as an array [N, H, W]; default border_colour.
    settings: fields of RunConfig (size, batch_size, stem, device, threads, save_every, ...); `sets` reaches any depth by path
    ("optimizer.lr"). Three ways not to simply go on: fresh starts anew in a new folder; resume_from starts from a checkpoint of another run, its
    optimizer and all, in `out`; the setting weights_from takes nothing but a run's encoder weights. accept_data_change: go on with an
    unfinished run though its pictures changed. loggers: told of every record beside metrics.jsonl (training/log.py).
    Several processes, launched by torchrun, train one run together: all of them make this call.
    command: what goes on with the run in a folder, for the message of a run that was stopped.

    Raises:
        DataError, UsageError, LockedError, DivergedError, and StoppedError when it was stopped and saved.

    Example:
        >>> import numpy as np, tempfile
        >>> pictures = np.random.default_rng(0).integers(0, 255, (8, 8, 8, 3), np.uint8)
        >>> run = pretrain(pictures, epochs=1, out=tempfile.mkdtemp(), quiet=True)
        >>> run.encoder(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 512])
    """
    with joined(str(settings.get("device") or "auto")), torch.random.fork_rng(devices=[]), kept_threads():
        say = _quiet if quiet or rank() > 0 else say_on_stderr
        call = _Call(data, encoder, masks, accept_data_change, quiet, command, say, loggers)
        with ExitStack() as held:
            start = None
            if rank() == 0:
                given = {"method": method, "epochs": epochs, "minutes": minutes, "seed": seed, **settings}
                start = _begin(call, held, out, given, config, settings_with_masks(masks, sets), fresh, resume_from)
            start = _Start.told(start)
            source = open_source(data) if start.source is None else start.source
            # pictures that have a place are told by it; of others, such as arrays, only the pixels say whose encoder this is
            if start.as_it_is:
                return _as_it_is(start.folder, encoder, say)
            return _run(source, start, call)


@dataclass(frozen=True)
class _Call:
    """What the caller passed that is no setting."""

    data: Any
    encoder: str | nn.Module | None
    masks: Masks | None
    accept_data_change: bool
    quiet: bool
    command: Callable[[Path], str] | None
    say: Say
    loggers: Sequence[Logger]


@dataclass(frozen=True)
class _Start:
    """Where a run begins or goes on: what process 0 found out, and the others are told."""

    config: RunConfig
    folder: Path
    began: bool
    as_it_is: bool
    batch_given: bool
    origin: Origin | None
    source: Source | None = None

    @staticmethod
    def told(start: _Start | None) -> _Start:
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
        return _Start(from_tables(RunConfig, tables), Path(folder), began, as_it_is, batch_given, known)


def _begin(
    call: _Call,
    held: ExitStack,
    out: str | Path | None,
    given: Mapping[str, Any],
    config: str | None,
    sets: Mapping[str, object],
    fresh: bool,
    resume_from: str | Path | None,
) -> _Start:
    """Settings and folder, made and locked until `held` ends; a run that began in it is gone on with."""
    if out is not None:
        check_folder(out)
    origin = None if resume_from is None else origin_of(resume_from)
    if origin is not None and out is None:
        raise UsageError(f"--resume-from {resume_from} goes on in a folder of its own; wanted --out DIR, a new one")
    source = open_source(call.data)
    file = str(origin.folder / "run.toml") if origin is not None and config is None else config
    wanted, reasons = settle(call.data, source, given, file, sets, call.encoder)
    wanted = check_masks(wanted, call.masks, call.say)
    if wanted.batch_size % world():
        raise UsageError(
            f"batch_size is {wanted.batch_size:,} for {world()} processes; wanted a number of pictures that divides evenly: "
            f"--batch-size {max(world(), wanted.batch_size - wanted.batch_size % world())}"
        )
    if reasons.get("pack") == NO_JPEGS:
        call.say(f"pack is raw, not jpeg: {NO_JPEGS}")
    folder = Path(out) if out is not None else default_out(source, wanted)
    if fresh:
        folder = next_free(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    prepare_folder(folder)
    held.enter_context(lock_folder(folder))
    held.enter_context(_tidy(folder, made))
    explicit = {name for name, reason in reasons.items() if reason in configuration.BY_HAND}
    stored = stored_config(folder)
    if stored is not None:
        wanted = going_on(wanted, stored, explicit, folder, call.say)
        tell_other_processes(folder, call.say)
    elif origin is not None:
        of_origin = stored_config(origin.folder)
        assert of_origin is not None, "origin_of has seen its run.toml"
        wanted = going_on(wanted, of_origin, explicit, origin.folder, call.say)
        tell_other_processes(origin.folder, call.say)
    placed = stored is not None and source.root is not None and wanted.data == stored.data
    return _Start(wanted, folder, stored is not None, placed and finished(folder), "batch_size" in explicit, origin, source)


@contextmanager
def _tidy(folder: Path, made: list[Path]) -> Iterator[None]:
    """A start that fails before run.toml is written takes the folders back that it made."""
    try:
        yield
    except BaseException:
        if not (folder / "run.toml").exists():
            withdraw_folder(made)
        raise


def _as_it_is(folder: Path, encoder: str | nn.Module | None, say: Say) -> Run:
    """The finished run in this folder."""
    say(f"{folder} is finished; --fresh starts anew")
    net, _ = load_encoder(folder, into=copy.deepcopy(encoder) if isinstance(encoder, nn.Module) else None)
    return Run(folder, _rows(folder), net)


def _run(source: Source, start: _Start, call: _Call) -> Run:
    keep_big_blocks()
    config, folder, began, say = start.config, start.folder, start.began, call.say
    leads = rank() == 0
    pack = in_turn(lambda: decoded(source, config, folder if leads else None, say))
    if tell(pack.hash) != pack.hash:
        raise DataError(
            f"process {rank()} reads other pictures in {source.name} than process 0; wanted the same on all machines"
        )
    data_of = folder if began else (start.origin.folder if start.origin is not None else None)
    changed = "" if data_of is None else changed_pictures(data_of, source, pack, call.accept_data_change)
    if began and finished(folder):
        return _as_it_is(folder, call.encoder, say)
    config = _batch_that_fits(config, pack, source, start)
    found = in_turn(lambda: foregrounds_of(pack, config, call.masks, say, telling("masking", say)))
    if data_of is not None and not changed:
        check_same_masks(data_of, found)
    with numerics(config.tf32, config.deterministic):
        config, parts = build(config, pack, call.encoder, say, found)
        if began:
            check_same_weights(folder, parts.weights)
        say(f"pictures and views take {math.ceil(parts.memory() / 2**20):,} MiB of memory")
        loaded = _load(start, say)
        if config.steps is None:
            steps = total_steps(config, len(pack)) if config.minutes is None else calibrate(parts, config.minutes, say)
            config = parts.config = replace(config, steps=int(tell(str(steps))))
        steps = total_steps(config, len(pack))
        at = 0 if loaded is None else loaded[0]
        if changed:
            say(
                f"the pictures changed since {data_of} began: {changed}; going on with them as they are now, as run.toml records"
            )
            changed = f"step {at}: {changed}"
        if leads:
            if changed or not began:
                write_config(folder, config, _recorded(pack, found, parts, start.origin, at), changed if began else "")
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


def _batch_that_fits(config: RunConfig, pack: Pack, source: Source, start: _Start) -> RunConfig:
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


def _recorded(pack: Pack, found: Foregrounds | None, parts: Parts, origin: Origin | None, at: int) -> dict[str, Any]:
    """What run.toml tells beside the settings."""
    return {
        "data_hash": pack.hash,
        "pictures": len(pack),
        **({} if found is None else {"masks_hash": found.hash, "masks_share": round(float(found.usable.mean()), 4)}),
        **({} if origin is None else {"resumed_from": f"step {at} of {origin.folder}"}),
        **({} if parts.weights is None else {"weights_sha256": parts.weights}),
        "precision": parts.precision.reason,
    }


def _load(start: _Start, say: Say) -> checkpoint.Loaded | None:
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
        )
        beside.end(done)


def _finish(parts: Parts, folder: Path, steps: int, beside: Beside, say: Say) -> Run:
    """The encoder, and what it cost, into the run folder."""
    config, encoder_config = parts.config, parts.encoder_config
    encoder = parts.state.networks.online.encoder
    if rank() == 0:
        cost = {
            **beside.summary(),
            "steps": steps,
            "epochs": round(steps / steps_per_epoch(len(parts.pack), config.batch_size), 2),
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
        say(
            f"finished: {steps:,} step{'s' * (steps != 1)} in {clock(cost['train_seconds'])}; the encoder is in {folder / 'encoder'}"
        )
    return Run(folder, _rows(folder), encoder.to("cpu").to(memory_format=torch.contiguous_format).eval())


def _rows(folder: Path) -> list[Row]:
    path = folder / "rows.jsonl"
    return [Row(**record) for record in read_jsonl(path)] if path.exists() else []
