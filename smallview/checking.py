"""A look at pictures before training: broken, odd and double ones, leaks, and augmentations that would hide the class."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from smallview.data.sources import open_source
from smallview.data.survey import Survey, survey
from smallview.evaluation import clues
from smallview.evaluation.twins import find_shared, find_twins
from smallview.findings import MIRRORED, Check, Clues, Sizes, findings
from smallview.pictures import telling, told_when_stuck
from smallview.presets import preset
from smallview.settle import kept_threads, thread_count

SAMPLE = 5_000  # pictures that clues are judged on
TINY, FAR_UNDER = 16, 8  # pixels; times smaller than the median
HUGE, LONG = 50_000_000, 5  # pixels; times longer than wide


def check(
    data: Any,
    test: Any = None,
    *,
    method: str = "simclr",
    threads: int | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Check:
    """Look at all pictures once, before training; nothing is changed, and nothing is kept.

    data: as for pretrain. test: pictures that must not be among them. method: whose views the advice is about.

    Raises:
        DataError: data that cannot be meant. UsageError: no such method.

    Example:
        >>> random = np.random.default_rng(0)
        >>> images = random.integers(0, 256, (60, 16, 16, 3), np.uint8)
        >>> images[7] = images[5]
        >>> found = check(images)
        >>> found.pictures, found.twins.equal, [each.about for each in found.alarms]
        (60, (('05', '07'),), [])
    """
    began = time.monotonic()
    preset(method)
    threads = thread_count(threads)
    source, other = open_source(data), None if test is None else open_source(test)

    def read(of: Any, most: int) -> Survey:
        names = of.names
        with told_when_stuck(telling("reading", say), say, lambda i: names[min(i, len(names) - 1)]) as progress:
            return survey(of, most=most, threads=threads, progress=progress)

    with kept_threads():
        torch.set_num_threads(threads)
        seen = read(source, SAMPLE)
        labels, classes = _labels(seen)
        twins = find_twins(seen, telling("comparing", say))
        shared = None if other is None else find_shared(seen, read(other, 0), telling("comparing test pictures:", say))
        told, facing = _clues(seen, labels)
    mean = seen.mean.mean(0) if len(seen) else np.zeros(source.channels)
    std = np.sqrt(np.maximum(seen.square.mean(0) - mean**2, 0)) if len(seen) else mean
    path = os.fspath(data) if isinstance(data, (str, os.PathLike)) else None
    found = Check(
        data=source.name if path is None else path,
        pictures=len(seen),
        broken=seen.broken,
        skipped=source.skipped,
        channels=source.channels,
        sizes=_sizes(seen),
        mean=tuple(np.round(mean, 4).tolist()),
        std=tuple(np.round(std, 4).tolist()),
        gray=float(seen.gray.mean()) if len(seen) else 0.0,
        constant=_names(seen, seen.flat),
        classes=classes,
        twins=twins,
        shared=shared,
        clues=told,
        facing=facing,
        seconds=round(time.monotonic() - began, 2),
    )
    return replace(found, findings=findings(found, path or "DATA", method))


def _names(seen: Survey, chosen: Any) -> tuple[str, ...]:
    return tuple(seen.name(int(i)) for i in np.flatnonzero(chosen))


def _labels(seen: Survey) -> tuple[Any, dict[str, int]]:
    """Numbers from 0 to K - 1 for the pictures' labels, or None; and how many pictures each class has, by its name."""
    if seen.labels is None:
        return None, {}
    named = seen.source.classes
    if named is not None and len(seen) and seen.labels.min() >= 0 and seen.labels.max() < len(named):
        return seen.labels, dict(zip(named, np.bincount(seen.labels, minlength=len(named)).tolist(), strict=True))
    values, numbers, counts = np.unique(seen.labels, return_inverse=True, return_counts=True)
    return numbers.reshape(-1), dict(zip(map(str, values.tolist()), counts.tolist(), strict=True))


def _sizes(seen: Survey) -> Sizes:
    if not len(seen):
        return Sizes(0, 0, 0, (), ())
    short, long = np.minimum(seen.heights, seen.widths), np.maximum(seen.heights, seen.widths)
    median = float(np.median(short))
    tiny = short < max(min(TINY, median), median / FAR_UNDER)
    return Sizes(
        *(int(short.min()), int(median), int(short.max())),
        _names(seen, tiny),
        _names(seen, (short * long > HUGE) | (long > LONG * short)),
    )


def _clues(seen: Survey, labels: Any) -> tuple[Clues | None, clues.Clue | None]:
    """What tells the class, and whether pictures face one way, from the pictures of the sample that differ."""
    _, first = np.unique(seen.hash[seen.sample], return_index=True)
    kept = np.sort(first[~seen.flat[seen.sample[first]]])
    which, colours = seen.sample[kept], seen.colours[kept]
    thumbs = seen.thumbs[which]
    facing = clues.facing(thumbs) if len(which) >= clues.LEAST_PICTURES else None
    if labels is None or not len(usable := clues.usable(labels[which])):
        return None, facing
    known, thumbs = labels[which][usable], thumbs[usable]
    coloured = seen.source.channels == 3 and not seen.gray[which[usable]].all()
    return Clues(
        clues.clue(clues.colour_of(colours[usable]), known) if coloured else None,
        clues.clue(clues.brightness_of(thumbs), known),
        clues.clue(clues.shape_of(thumbs), known),
        clues.flipped(thumbs, known, MIRRORED),
    ), facing
