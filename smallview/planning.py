"""I have these pictures, this machine and so many minutes: what should I run?"""

from __future__ import annotations

import hashlib
import math
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smallview.config import RunConfig
from smallview.data.decoding import BadPicture
from smallview.data.sources import Source, open_source
from smallview.data.subsets import taken
from smallview.errors import UsageError, suggest
from smallview.foregrounds import foregrounds_of
from smallview.parts import build
from smallview.pictures import decoded
from smallview.recipes import FEWEST, LEAST_SEEN, METRIC, Evidence, Recipe, Task, evidence, ranked
from smallview.seeds import generator
from smallview.settle import kept_threads, picture_side, settle
from smallview.timing import seconds_of_step
from smallview.training.cost import peak_memory
from smallview.training.precision import keep_big_blocks, numerics
from smallview.views.view import pixels

MOST_PROBED, MOST_LOOKED_AT = 512, 5_000  # pictures
LONGEST_LOOK = 5.0  # seconds
Say = Callable[[str], None]


@dataclass(frozen=True)
class Proposal:
    """A recipe for these pictures on this machine. seconds, memory_mb: predicted. views: that the training sees; seen: views of each picture.

    sides: of the views, in words. fits: whether its memory is within what was asked for.
    """

    name: str
    why: str
    command: str
    seconds: float
    memory_mb: float
    steps: int
    views: int
    seen: float
    sides: str
    expected: str
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """By name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What to do: in words, and as recipes, the first of which `pretrain --minutes M` runs; none for pictures too few to learn from."""

    verdict: str
    helps: bool
    pictures: dict[str, Any]
    minutes: float
    recipes: tuple[Proposal, ...]

    def as_dict(self) -> dict[str, Any]:
        """By name, for JSON."""
        return {**asdict(self), "recipes": [recipe.as_dict() for recipe in self.recipes]}


def plan(
    data: Any,
    minutes: float,
    *,
    memory: float | None = None,
    task: Task = "linear",
    device: str = "auto",
    threads: int | None = None,
    called: str | None = None,
    say: Say = lambda message: None,
) -> Plan:
    """Look at the pictures, time a few steps of each recipe on this machine, and say which to run and what it will cost.

    data: as for pretrain. minutes: of training. memory: GiB that may be used. task: what the encoder is for, which decides by what measured
    figure recipes are ranked. called: how the data are named on a command line. Takes up to about half a minute, most of it the timed steps.

    Raises:
        DataError: data that cannot be used. UsageError: minutes or memory that cannot be meant.

    Example:
        >>> pictures = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), np.uint8)
        >>> plan(pictures, 1.0, threads=1).helps
        False
    """
    if not 0.0 < minutes <= 1e6:
        raise UsageError(f"minutes is {minutes:g}; wanted a number above 0")
    if memory is not None and not 0.0 < memory <= 1e6:
        raise UsageError(f"memory is {memory:g}; wanted GiB above 0")
    if task not in METRIC:
        raise UsageError(f'no task is called "{task}"{suggest(task, METRIC)}')
    source = open_source(data)
    looked_at, copies, broken = _look(source)
    facts = {
        **{"name": source.name, "count": len(source), "side": picture_side(source), "channels": source.channels},
        **{"looked_at": looked_at, "copies": copies, "broken": broken},
    }
    named = called if called is not None else (str(data) if isinstance(data, (str, Path)) else source.name)
    where = [] if device == "auto" else ["--device", device]
    where += [] if threads is None else ["--threads", str(threads)]
    proposals: list[Proposal] = []
    keep_big_blocks()
    known: dict[str, Evidence | None] = {}
    with kept_threads(), torch.random.fork_rng(devices=[]):
        sample = _sample(source)
        for recipe in ranked(task, minutes) if len(source) >= FEWEST else ():
            given: dict[str, Any] = {**recipe.given, "minutes": minutes, "device": device, "threads": threads}
            config, _ = settle(data, source, given, None, recipe.sets, None)
            known[recipe.name] = evidence(recipe, task, minutes)
            words = ["smallview", "pretrain", named, "--minutes", f"{minutes:g}", *recipe.flags(), *where]
            proposals.append(
                _propose(recipe, known[recipe.name], config, source, sample, minutes, memory, task, shlex.join(words), say)
            )
    proposals.sort(key=lambda one: not one.fits)  # what does not fit comes last, else as they are ranked
    verdict, helps = _verdict(len(source), minutes, memory, proposals, named)
    if copies or broken:
        more = f"{copies:,} are copies of others and {broken:,} cannot be read"
        verdict += f". Of {looked_at:,} pictures looked at {more}: smallview check {shlex.quote(named)}"
    return Plan(verdict, helps, facts, minutes, tuple(proposals))


def _look(source: Source) -> tuple[int, int, int]:
    """(pictures looked at, copies of others among them to the pixel, pictures that cannot be read), for a few seconds at most."""
    order = generator(0, "look").permutation(len(source))[:MOST_LOOKED_AT]
    seen: set[bytes] = set()
    looked_at = broken = 0
    end = time.monotonic() + LONGEST_LOOK
    for i in order:
        if time.monotonic() > end:
            break
        looked_at += 1
        try:
            pixels = source.read(int(i), 32)
        except BadPicture:
            broken += 1
            continue
        seen.add(hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16, key=str(pixels.shape).encode()).digest())
    return looked_at, looked_at - broken - len(seen), broken


def _sample(source: Source) -> Source:
    """Some of the pictures, enough to time steps on."""
    if len(source) <= MOST_PROBED:
        return source
    chosen = np.sort(generator(0, "plan").choice(len(source), MOST_PROBED, replace=False)).astype(np.int64)
    return taken(source, chosen, source.name)


def _propose(
    recipe: Recipe,
    known: Evidence | None,
    config: RunConfig,
    source: Source,
    sample: Source,
    minutes: float,
    memory: float | None,
    task: Task,
    command: str,
    say: Say,
) -> Proposal:
    """A recipe, timed on a sample of the pictures."""
    say(f"timing: {recipe.name}")
    quiet: Say = lambda message: None  # noqa: E731
    own = replace(config, batch_size=min(config.batch_size, len(sample)))
    with tempfile.TemporaryDirectory() as scratch:
        pack = decoded(sample, own, Path(scratch), quiet)
        own = replace(own, batch_size=min(own.batch_size, len(pack)))  # some may be unreadable
        with numerics(own.tf32, own.deterministic):
            _, parts = build(own, pack, None, quiet, foregrounds_of(pack, own, None, quiet))
            before = time.monotonic()
            step = seconds_of_step(parts, most=6.0) * config.batch_size / own.batch_size
    steps = max(1, int(60.0 * minutes / step))
    images = steps * config.batch_size
    views = images * len(config.method.views)
    used = peak_memory(parts.device) / 2**20
    say(f"  {1000 * step:.0f} ms a step ({time.monotonic() - before:.0f} s to find out)")
    return Proposal(
        recipe.name,
        recipe.why,
        command,
        round(60.0 * minutes, 1),
        round(used),
        steps,
        views,
        round(views / len(source), 1),
        _sides(config),
        "no measured run of this length yet" if known is None else known.sentence(task),
        memory is None or used <= 1024.0 * memory,
    )


def _sides(config: RunConfig) -> str:
    """The sides of the views, in pixels: at first, and then at the end where they differ."""
    at = [sorted({pixels(view.size, config.size, when) for view in config.method.views}) for when in (0.0, 1.0)]
    return ", then ".join(dict.fromkeys(" and ".join(map(str, sides)) for sides in at)) + " px"


def _verdict(count: int, minutes: float, memory: float | None, proposals: list[Proposal], named: str) -> tuple[str, bool]:
    """What to do, in words, and whether pretraining is likely to help."""
    other = f"smallview embed resnet18.a1_in1k {shlex.quote(named)} --out embeddings"
    if count < FEWEST:
        return (
            f"{count} pictures are too few to learn from: an encoder that was trained on others will serve you better ({other}), "
            f"or bring {FEWEST} pictures and more, better thousands"
        ), False
    first = proposals[0]
    if not first.fits:
        least = min(one.memory_mb for one in proposals)
        return (
            f"no recipe fits {memory:g} GiB: the smallest takes about {least / 1024:.1f} GiB; a smaller --size or --batch-size takes less"
        ), False
    if first.seen < LEAST_SEEN:
        need = minutes * LEAST_SEEN / max(first.seen, 1e-9)
        return (
            f"in {minutes:g} minutes each of {count:,} pictures is seen {first.seen:.1f} times, too seldom to learn much: take about "
            f"{math.ceil(need):,} minutes, a smaller --size, or fewer pictures (--subset 10%)"
        ), False
    seen = f"{minutes:g} minutes each of {count:,} pictures is seen about {first.seen:.0f} times"
    return f"pretraining fits; by the first recipe, {first.name}, in {seen}", True
