"""The story of one run: from data to a saved encoder, and from an encoder to report rows."""

from __future__ import annotations

import copy
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smallview import config as configuration
from smallview.config import RunConfig, mathematics, steps_per_epoch, total_steps
from smallview.data.pack import Pack
from smallview.data.sources import Source, open_source
from smallview.errors import SmallviewError, StoppedError, UsageError
from smallview.files import check_folder, write_text
from smallview.foregrounds import Masks, check_masks, check_same_masks, foregrounds_of, settings_with_masks
from smallview.networks.encoders import load_encoder, save_encoder
from smallview.parts import Parts, build, calibrate
from smallview.pictures import changed_pictures, decoded, record_pictures, telling
from smallview.records import Foregrounds, Row
from smallview.settings import diff, dump_toml, from_tables, load_toml, to_tables
from smallview.settings.fitting import printable
from smallview.settle import NO_JPEGS, cores, default_out, kept_threads, next_free, settle
from smallview.training import checkpoint
from smallview.training.cost import forward_macs
from smallview.training.launch import StopRequest, lock_folder, prepare_folder, withdraw_folder
from smallview.training.log import MetricsLog
from smallview.training.loop import StepReport, train
from smallview.training.precision import keep_big_blocks
from smallview.training.progress import Progress, clock
from smallview.training.watch import Watch

LOG_EVERY = 10
MOST_TOLD = 6
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
    accept_data_change: bool = False,
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
    ("optimizer.lr"). accept_data_change: go on with an unfinished run though its pictures changed.
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
    say = _quiet if quiet else say_on_stderr
    if out is not None:
        check_folder(out)
    source = open_source(data)
    given = {"method": method, "epochs": epochs, "minutes": minutes, "seed": seed, **settings}
    wanted, reasons = settle(data, source, given, config, settings_with_masks(masks, sets), encoder)
    wanted = check_masks(wanted, masks, say)
    if reasons.get("pack") == NO_JPEGS:
        say(f"pack is raw, not jpeg: {NO_JPEGS}")
    folder = Path(out) if out is not None else default_out(source, wanted)
    if fresh:
        folder = next_free(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    prepare_folder(folder)
    with lock_folder(folder), _tidy(folder, made):
        stored = _stored(folder)
        explicit = {name for name, reason in reasons.items() if reason in configuration.BY_HAND}
        if stored is not None:
            wanted = _continue(wanted, stored, explicit, folder, say)
        with torch.random.fork_rng(devices=[]), kept_threads():
            # pictures that have a place are told by it; of others, such as arrays, only the pixels say whose encoder this is
            if stored is not None and source.root is not None and wanted.data == stored.data and _finished(folder):
                return _as_it_is(folder, encoder, say)
            return _run(
                source, wanted, folder, encoder, masks, "batch_size" in explicit, accept_data_change, say, quiet, command
            )


@contextmanager
def _tidy(folder: Path, made: list[Path]) -> Iterator[None]:
    """A start that fails before run.toml is written takes the folders back that it made."""
    try:
        yield
    except BaseException:
        if not (folder / "run.toml").exists():
            withdraw_folder(made)
        raise


def _finished(folder: Path) -> bool:
    return (folder / "encoder" / "config.json").exists() and (folder / "summary.json").exists()


def _as_it_is(folder: Path, encoder: str | nn.Module | None, say: Say) -> Run:
    """The finished run in this folder."""
    say(f"{folder} is finished; --fresh starts anew")
    net, _ = load_encoder(folder, into=copy.deepcopy(encoder) if isinstance(encoder, nn.Module) else None)
    return Run(folder, _rows(folder), net)


def _stored(folder: Path) -> RunConfig | None:
    """The settings of a run that began in this folder."""
    path = folder / "run.toml"
    if not path.exists():
        return None
    try:
        tables = load_toml(path)
        version = tables.pop("format_version", configuration.FORMAT_VERSION)
        tables.pop("recorded", None)
        if version == configuration.FORMAT_VERSION:
            return from_tables(RunConfig, tables, source=str(path))
    except UsageError as error:
        raise UsageError(f"the record of the run is damaged: {error}; put it right, or add --fresh or another --out") from None
    if version not in range(1, configuration.FORMAT_VERSION):
        raise UsageError(
            f"{path} has format_version {version}; this version goes on with {configuration.FORMAT_VERSION}: add --fresh or another --out"
        )
    began = "was made by" if _finished(folder) else "began with"
    finish = "" if _finished(folder) else "finish it there, or "
    raise UsageError(f"{folder} {began} an earlier version of smallview, whose views were others; {finish}add --fresh")


def _continue(wanted: RunConfig, stored: RunConfig, explicit: set[str], folder: Path, say: Say) -> RunConfig:
    """The settings to go on with: the stored ones, if the mathematics agree."""
    # what was left to the defaults stays as the first start resolved it
    left = {name: getattr(stored, name) for name in ("batch_size", "stem", "layout", "dtype", "pack") if name not in explicit}
    if wanted.stem == "auto":
        left["stem"] = stored.stem
    wanted = replace(wanted, **left)
    changed = [line for line in diff(mathematics(stored), mathematics(wanted)) if not line.startswith("data:")]
    if changed:
        told = "; ".join(changed[:MOST_TOLD]) + (f"; and {len(changed) - MOST_TOLD} more" if len(changed) > MOST_TOLD else "")
        raise UsageError(
            f"{folder} holds a run with other settings ({told}); "
            "repeat its settings to go on with it, or add --fresh or another --out to start anew"
        )
    if "threads" in explicit and wanted.threads != stored.threads:
        say(f"going on with {stored.threads} threads as the run began, not {wanted.threads}: other threads give other bits")
    return replace(wanted, steps=stored.steps, threads=stored.threads)


def _write_config(
    folder: Path, config: RunConfig, pack: Pack, found: Foregrounds | None, parts: Parts, changed: str = ""
) -> None:
    changes = load_toml(folder / "run.toml").get("recorded", {}).get("data_changes", []) if changed else []
    recorded = {
        "data_hash": pack.hash,
        "pictures": len(pack),
        **({"data_changes": [*changes, changed]} if changed else {}),
        **({} if found is None else {"masks_hash": found.hash, "masks_share": round(float(found.usable.mean()), 4)}),
        "precision": parts.precision.reason,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {cores()} cores",
    }
    tables = {"format_version": configuration.FORMAT_VERSION, **to_tables(config), "recorded": recorded}
    write_text(folder / "run.toml", dump_toml(tables))


def _run(
    source: Source,
    config: RunConfig,
    folder: Path,
    encoder: str | nn.Module | None,
    masks: Masks | None,
    batch_given: bool,
    accept_data_change: bool,
    say: Say,
    quiet: bool,
    command: Callable[[Path], str] | None,
) -> Run:
    keep_big_blocks()
    began = (folder / "run.toml").exists()
    pack = decoded(source, config, folder, say)
    changed = changed_pictures(folder, source, pack, accept_data_change) if began else ""
    if began and _finished(folder):
        return _as_it_is(folder, encoder, say)
    if config.batch_size > len(pack):
        few = f"batch_size is {config.batch_size:,} and {source.name} has {len(pack):,} readable pictures; "
        if began:
            raise UsageError(
                f"{few}the batch is a setting of the run: bring pictures back, or add --fresh with --batch-size {len(pack)}"
            )
        if batch_given:
            raise UsageError(f"{few}wanted at most that: --batch-size {len(pack)}")
        config = replace(config, batch_size=len(pack))  # the default was all pictures, and some proved unreadable
    found = foregrounds_of(pack, config, masks, say, telling("masking", say))
    if began and not changed:
        check_same_masks(folder, found)
    config, parts = build(config, pack, encoder, say, found)
    say(f"pictures and views take {math.ceil(parts.memory() / 2**20):,} MiB of memory")
    state = parts.state
    spent, watch = 0.0, Watch()
    checkpoints = folder / "checkpoints"
    checkpoint.sweep(checkpoints)
    loaded = checkpoint.load_latest(checkpoints) if began else None
    if config.steps is None:
        steps = total_steps(config, len(pack)) if config.minutes is None else calibrate(parts, config.minutes, say)
        config = parts.config = replace(config, steps=steps)
    steps = total_steps(config, len(pack))
    if changed:
        say(f"the pictures changed since {folder} began: {changed}; going on with them as they are now, as run.toml records")
        changed = f"step {loaded[0] if loaded is not None else 0}: {changed}"
    if changed or not began:
        _write_config(folder, config, pack, found, parts, changed)
    record_pictures(folder, source, pack, config)  # equal pictures too: files that were copied back have other times
    if loaded is not None:
        at, tensors, extra, notes = loaded
        for note in notes:
            say(note)
        state.load(tensors, at, int(extra.get("skipped", 0)))
        spent = float(extra.get("seconds", 0.0))
        watch = Watch(**extra.get("watch", {}))
        say(f"resuming at step {at:,} of {steps:,}")
    elif began:
        say(f"resuming at step 0 of {steps:,}: no checkpoint had been written")
    seconds = _train(parts, folder, steps, spent, watch, quiet, command)
    return _finish(parts, folder, steps, seconds, say)


def _train(
    parts: Parts,
    folder: Path,
    steps: int,
    spent: float,
    watch: Watch,
    quiet: bool,
    command: Callable[[Path], str] | None,
) -> float:
    """Train to the last step with checkpoints on the way; seconds spent so far in all."""
    config, state = parts.config, parts.state
    started = last_save = time.monotonic()
    failures = 0

    def total() -> float:
        return spent + time.monotonic() - started

    def save() -> bool:
        nonlocal failures, last_save
        last_save = time.monotonic()
        try:
            extra = {"seconds": total(), "skipped": state.skipped, "watch": asdict(watch)}
            checkpoint.save(folder / "checkpoints", state.step, state.tensors(), extra)
            failures = 0
        except SmallviewError as error:
            failures += 1
            if failures >= 3:
                raise SmallviewError(f"{error} (third failure in a row; training stops)") from error
            progress.say(str(error))
        return failures == 0

    with (
        MetricsLog(folder / "metrics.jsonl") as log,
        Progress(steps, quiet=quiet) as progress,
        StopRequest(_quiet if quiet else progress.say) as stop,
    ):
        log.truncate_after(state.step)

        def on_step(report: StepReport) -> bool:
            progress.update(report)
            if report.rows:
                names = [parts.pack.names[i] for i in report.rows]
                write_text(
                    folder / f"skipped-step-{report.step:06d}.json",
                    json.dumps({"warning": report.warning, "pictures": names}) + "\n",
                )
            if report.spread is not None:
                warning = watch.look(report.spread, report.step)
                if warning:
                    progress.say(warning)
            if report.step % LOG_EVERY == 0 or report.step == steps or report.warning:
                log.write(
                    {
                        "step": report.step,
                        "epoch": round(report.step / steps_per_epoch(len(parts.pack), config.batch_size), 4),
                        "loss": report.loss,
                        **{f"loss/{name}": value for name, value in report.losses.items()},
                        "spread": watch.last,
                        "lr": report.lr,
                        "images_per_second": round(report.images / max(report.seconds, 1e-9), 1),
                        "waiting": round(report.waited / max(report.seconds, 1e-9), 4),
                        "seconds": round(total(), 3),
                    }
                )
            if report.warning is None and time.monotonic() - last_save >= config.save_every and report.step < steps:
                save()
            return stop.requested

        if state.step < steps:
            finished = train(
                state,
                config.method,
                parts.feed(state.step, steps, steps),
                total_steps=steps,
                lr=parts.lr(),
                seed=config.seed,
                precision=parts.precision,
                device=parts.device,
                on_step=on_step,
            )
            saved = save()
            if not finished:
                again = f"go on with: {command(folder)}" if command else "the same call goes on with it"
                raise StoppedError(
                    f"stopped at step {state.step:,} of {steps:,} and {'saved' if saved else 'NOT saved'}; {again}"
                )
    return total()


def _finish(parts: Parts, folder: Path, steps: int, seconds: float, say: Say) -> Run:
    """The encoder, and what it cost, into the run folder."""
    config, encoder_config = parts.config, parts.encoder_config
    encoder = parts.state.networks.online.encoder
    cost = {
        "train_seconds": round(seconds, 1),
        "steps": steps,
        "epochs": round(steps / steps_per_epoch(len(parts.pack), config.batch_size), 2),
        "images": steps * config.batch_size,
        "forward_mmacs": round(forward_macs(encoder, encoder_config.in_channels, encoder_config.size) / 1e6, 2),
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "threads": config.threads,
    }
    save_encoder(encoder, encoder_config, folder / "encoder")
    summary = {"finished": True, "seed": config.seed, "method": config.preset, "encoder": config.encoder, "cost": cost}
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    say(f"finished: {steps:,} step{'s' * (steps != 1)} in {clock(seconds)}; the encoder is in {folder / 'encoder'}")
    return Run(folder, _rows(folder), encoder.to("cpu").to(memory_format=torch.contiguous_format).eval())


def _rows(folder: Path) -> list[Row]:
    from smallview.training.log import read_jsonl

    path = folder / "rows.jsonl"
    return [Row(**record) for record in read_jsonl(path)] if path.exists() else []
