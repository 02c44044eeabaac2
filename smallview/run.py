"""The story of one run: what was asked for, its folder, and the training, whole or in stages."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smallview.chain import link_of, run_stages
from smallview.choosing import EXCLUDED, LIST, excluded_names, without
from smallview.collectives import rank, world
from smallview.config import RunConfig
from smallview.continuing import finished, going_on, origin_of, stored_config, tell_other_processes
from smallview.data.sources import Source, open_source
from smallview.errors import UsageError
from smallview.files import check_folder
from smallview.foregrounds import Masks, check_masks, settings_with_masks
from smallview.recipes import KNOWN
from smallview.resolving import BY_HAND
from smallview.settings.fitting import printable
from smallview.settle import NO_JPEGS, default_out, kept_threads, next_free, settle
from smallview.single import Call, Run, Start, as_it_is, run_training
from smallview.training.launch import lock_folder, prepare_folder, withdraw_folder
from smallview.training.log import Logger
from smallview.training.processes import in_turn, joined

Say = Callable[[str], None]


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
    settings: fields of RunConfig (size, batch_size, stem, device, threads, save_every, ...), stages and subset also as the command line has them
    ("16x70%,32x30%", "10%"), exclude (a list of pictures to leave out, a name a line), and resolution; `sets` reaches any depth by path
    ("optimizer.lr"). Three ways not to simply go on: fresh starts anew in a new folder; resume_from starts from a checkpoint of another run, its
    optimizer and all, in `out`; the setting weights_from takes nothing but a run's encoder weights. accept_data_change: go on with an
    unfinished run though its pictures changed. loggers: told of every record beside metrics.jsonl (training/log.py).
    Several processes, launched by torchrun, train one run together: all of them make this call.
    command: what goes on with the run in a folder, for the message of a run that was stopped.

    Returns:
        Run: its folder, its rows so far, and the encoder on the CPU in evaluation mode, [B, C, H, W] normalised -> [B, F].

    Raises:
        UsageError: settings that cannot be meant, or that differ from those of the run in `out`. DataError: pictures that cannot be used,
            or that changed since that run began. LockedError: another process uses `out`. DivergedError: numbers that stayed not
            finite. StoppedError: Ctrl-C or SIGTERM, saved. All are SmallviewErrors.

    Example:
        >>> import numpy as np, tempfile
        >>> pictures = np.random.default_rng(0).integers(0, 255, (8, 8, 8, 3), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pretrain(pictures, epochs=1, out=f"{folder}/run", quiet=True)
        >>> run.encoder(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 1024])
    """
    with joined(str(settings.get("device") or "auto")), torch.random.fork_rng(devices=[]), kept_threads():
        say = _quiet if quiet or rank() > 0 else say_on_stderr
        call = Call(data, encoder, masks, accept_data_change, quiet, command, say, loggers)
        with ExitStack() as held:
            start = None
            if rank() == 0:
                given = {"method": method, "epochs": epochs, "minutes": minutes, "seed": seed}
                given |= {
                    name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in settings.items()
                }
                start = _begin(call, held, out, given, config, settings_with_masks(masks, sets), fresh, resume_from)
            start = Start.told(start)
            source = open_source(data) if start.source is None else start.source
            # pictures that have a place are told by it; of others, such as arrays, only the pixels say whose encoder this is
            if start.as_it_is:
                return as_it_is(start.folder, encoder, say)
            if start.config.exclude is not None:
                source, call = _without_excluded(source, start, call)
            if start.config.stages:
                return run_stages(source, start, call)
            if start.origin is not None:
                start = replace(start, link=link_of(start.origin.folder, encoder))
            return run_training(source, start, call)


def _begin(
    call: Call,
    held: ExitStack,
    out: str | Path | None,
    given: Mapping[str, Any],
    config: str | None,
    sets: Mapping[str, object],
    fresh: bool,
    resume_from: str | Path | None,
) -> Start:
    """Settings and folder, made and locked until `held` ends; a run that began in it is gone on with."""
    if out is not None:
        check_folder(out)
    origin = None if resume_from is None else origin_of(resume_from)
    if origin is not None and out is None:
        raise UsageError(f"--resume-from {resume_from} goes on in a folder of its own; wanted --out DIR, a new one")
    source = open_source(call.data)
    if origin is not None and (given.get("stages") or given.get("subset") or given.get("exclude")):
        raise UsageError(
            "--resume-from goes on with what the other run was; wanted it without --stages, --subset and --exclude"
        )
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
    explicit = {name for name, reason in reasons.items() if reason in BY_HAND}
    stored = stored_config(folder, wanted)
    if stored is not None:
        if reasons["preset"].startswith("recipe"):
            wanted = _recipe_of(stored, wanted, call, source, given, explicit, folder)
        wanted = going_on(wanted, stored, explicit, folder, call.say)
        tell_other_processes(folder, call.say)
    elif (chosen := next((one for one in KNOWN if reasons["preset"] == f"recipe: {one.name}"), None)) is not None:
        call.say(f"recipe: {chosen.name} ({chosen.why}); smallview plan shows the others")
    elif origin is not None:
        of_origin = stored_config(origin.folder, wanted)
        assert of_origin is not None, "origin_of has seen its run.toml"
        wanted = going_on(wanted, of_origin, explicit, origin.folder, call.say)
        tell_other_processes(origin.folder, call.say)
    placed = stored is not None and source.root is not None and wanted.data == stored.data
    return Start(wanted, folder, stored is not None, placed and finished(folder), "batch_size" in explicit, origin, source)


def _without_excluded(source: Source, start: Start, call: Call) -> tuple[Source, Call]:
    """The pictures that the settings' list does not name, and the call for them; the folder keeps a copy of the list."""
    listed, began = start.config.exclude, start.folder if start.began else None
    assert listed is not None, "the caller has looked"
    whole, place = source, began if start.origin is None or began else start.origin.folder
    if place is not None and place.resolve().parent.name == "stages":
        place = place.resolve().parent.parent  # where a stage's list lies
    names = excluded_names(listed, place)
    leads = rank() == 0 and began is None
    source, kept = in_turn(lambda: without(whole, names, listed, start.folder if leads else None, call.say))
    return source, call.of_part(kept, len(whole))


def _recipe_of(
    stored: RunConfig, wanted: RunConfig, call: Call, source: Source, given: Mapping[str, Any], explicit: set[str], folder: Path
) -> RunConfig:
    """The settings of the recipe that a run of so many minutes began with, whichever stands first by now; else those wanted."""
    for recipe in KNOWN:
        other, _ = settle(call.data, source, {**given, **recipe.given}, None, recipe.sets, call.encoder)
        with suppress(UsageError):
            going_on(other, stored, explicit, folder, _quiet)
            return other
    return wanted


@contextmanager
def _tidy(folder: Path, made: list[Path]) -> Iterator[None]:
    """A start that fails before run.toml is written takes the folders back that it made."""
    try:
        yield
    except BaseException:
        if not (folder / "run.toml").exists():
            for name in (LIST, EXCLUDED):
                (folder / name).unlink(missing_ok=True)
            withdraw_folder(made)
        raise
