"""The protocol `robust`: a probe fitted on clean pictures, tested on corrupted ones and on further test parts of the same classes.

Legend: N pictures, K classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from smallview.errors import DataError, UsageError, suggest
from smallview.evaluation.bench import Bench, Contestant, Labeled
from smallview.evaluation.corruption_strengths import CORRUPTIONS, EXTRA
from smallview.evaluation.corruptions import corrupt
from smallview.evaluation.linear import PENALTIES, fit_linear
from smallview.evaluation.metrics import Figure, Kind, accuracy, half_width
from smallview.records import Pictures
from smallview.seeds import generator

HELD = 2**30  # bytes of corrupted pictures that are kept for the next contestant
SEVERITIES = (1, 2, 3, 4, 5)


def names_of(corruptions: tuple[str, ...]) -> tuple[str, ...]:
    """The corruptions that names and `common` (fifteen) and `all` (nineteen) stand for, each once.

    Raises:
        ValueError: a name that there is not.

    Example:
        >>> names_of(("fog", "fogg"))
        Traceback (most recent call last):
        ValueError: no corruption is called "fogg"; did you mean "fog"?
    """
    sets = {"common": CORRUPTIONS, "all": (*CORRUPTIONS, *EXTRA)}
    for name in corruptions:
        if name not in (*sets, *CORRUPTIONS, *EXTRA):
            raise ValueError(f'no corruption is called "{name}"{suggest(name, (*sets, *CORRUPTIONS, *EXTRA))}')
    return tuple(dict.fromkeys(name for one in corruptions for name in sets.get(one, (one,))))


def check_severities(severities: tuple[int, ...]) -> None:
    """Whether these are some of 1 to 5, else ValueError."""
    if not severities or any(severity not in SEVERITIES for severity in severities):
        raise ValueError(f"severities are {severities}; wanted some of 1 to 5")


class Corrupted:
    """Some pictures of a set, corrupted when asked for: the same for everyone who asks with the same seed."""

    def __init__(
        self, pictures: Pictures, which: npt.NDArray[np.int64], name: str, severity: int, seed: int, keep: bool = False
    ) -> None:
        self._pictures, self._which, self._how, self._seed = pictures, which, (name, severity), seed
        self.first, self.channels = 0, pictures.channels
        self.heights, self.widths = pictures.heights[which], pictures.widths[which]
        same = len(which) > 0 and bool((self.heights == self.heights[0]).all() and (self.widths == self.widths[0]).all())
        self.one_size = (int(self.heights[0]), int(self.widths[0])) if same else None
        told = getattr(pictures, "hash", "")
        words = f"{told} {name} {severity} {seed} ".encode() + which.astype("<i8").tobytes()
        self.hash = hashlib.sha256(words).hexdigest() if told else ""
        self._kept: dict[int, npt.NDArray[np.uint8]] | None = {} if keep else None

    def gather(self, index: npt.NDArray[np.int64], threads: int = 1) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """(flat uint8, where each begins int64 [B]) of the pictures at these positions."""
        made: dict[int, npt.NDArray[np.uint8]] = {} if self._kept is None else self._kept
        missing = np.array([i for i in index if int(i) not in made], np.int64)
        if len(missing):
            flat, starts = self._pictures.gather(self._which[missing], threads)
            sizes = np.stack([self.heights[missing], self.widths[missing]], 1)
            for size in np.unique(sizes, axis=0):
                rows = np.flatnonzero((sizes == size).all(1))
                height, width = int(size[0]), int(size[1])
                count = height * width * self.channels
                batch = np.stack([flat[starts[r] : starts[r] + count] for r in rows]).reshape(-1, height, width, self.channels)
                changed = corrupt(batch, *self._how, self._seed, self._which[missing[rows]])
                made.update(zip(missing[rows].tolist(), changed, strict=True))
        parts = [made[int(i)].reshape(-1) for i in index]
        ends = np.cumsum([part.size for part in parts])
        return np.concatenate(parts), (ends - [part.size for part in parts]).astype(np.int64)

    def __len__(self) -> int:
        return len(self._which)


@dataclass(frozen=True)
class Robust:
    """Accuracy under corruptions that the probe never saw: the mean over corruptions and five severities, and each corruption's own.

    corruptions: `common` (fifteen), `all` (with the extra four), or names. pictures: of the test part, drawn by class; the same, with
    the same draws, for every encoder. Further test parts of the same classes (`--shifted NAME=DATA`) are tested by the same probe.

    Source: Hendrycks and Dietterich, 2019.
    """

    corruptions: tuple[str, ...] = ("common",)
    severities: tuple[int, ...] = SEVERITIES
    pictures: int = 2000
    penalties: tuple[float, ...] = PENALTIES

    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)
    contestants: ClassVar[tuple[str, ...]] = ("encoder", "pixels", "untrained")

    def __post_init__(self) -> None:
        names_of(self.corruptions)
        check_severities(self.severities)
        if self.pictures < 1:
            raise ValueError(f"pictures is {self.pictures}; wanted 1 or more")

    def names(self) -> tuple[str, ...]:
        """The corruptions themselves."""
        return names_of(self.corruptions)

    def measure(self, who: Contestant, bench: Bench) -> list[Figure]:
        """Mean top-1 over corruptions, each corruption's, the same pictures clean, and each shifted part's.

        Raises:
            UsageError: pictures of channels that corruptions are not defined for.
        """
        channels = bench.test.pictures.channels
        if channels not in (1, 3):
            raise UsageError(
                f"{bench.test.name} has {channels} channels; corruptions are defined for 1 and 3: leave robust out"
            )
        seed = bench.seed
        probe = fit_linear(
            bench.features(who, bench.train), bench.train.targets, bench.classes, seed=seed, penalties=self.penalties
        )
        which = _some(bench.test, self.pictures, seed)
        truth = bench.test.targets[torch.from_numpy(which)]
        clean = accuracy(probe.predict(bench.features(who, bench.test)[torch.from_numpy(which)]), truth)
        names = self.names()
        found: dict[str, list[float]] = {}
        for name in names:
            bench.say(f"robust: {who.name}: {name}")
            for severity in self.severities:
                part = self._corrupted(bench, which, name, severity)
                features = bench.features(who, part, keep=False)
                if not bool(torch.isfinite(features).all()):
                    raise DataError(f"{who.name} gives features that are not finite for {name} at severity {severity}")
                found.setdefault(name, []).append(accuracy(probe.predict(features), truth))
        means = {name: float(np.mean(values)) for name, values in found.items()}
        mean = float(np.mean(list(means.values())))
        text = (
            f"robust: the linear probe (L2 penalty of {self.penalties} chosen on a held-out tenth of the clean training part, seed {seed}) "
            f"on {len(which):,} test pictures corrupted as packed, severities {self.severities}, the same draws (seed {seed}) for all; "
            f"frozen backbone features ({who.config.features})"
        )
        settings: dict[str, Any] = {"penalty": probe.penalty, "clean": clean, "severities": list(self.severities)}
        listed = f"{len(names)} corruptions ({', '.join(names)})"
        interval = half_width(mean, len(which))
        out = [
            Figure(f"{text}; mean over {listed}", "robust mean top-1 %", round(mean, 4), settings, interval),
            Figure(
                f"{text}; the same pictures clean",
                "robust clean top-1 %",
                clean,
                {"penalty": probe.penalty},
                half_width(clean, len(which)),
            ),
        ]
        for name in names:
            each = {"by_severity": found[name]}
            out.append(
                Figure(
                    f"{text}; {name} alone",
                    f"robust {name} top-1 %",
                    round(means[name], 4),
                    each,
                    half_width(means[name], len(which)),
                )
            )
        for name, part in bench.shifted.items():
            value = accuracy(probe.predict(bench.features(who, part)), part.targets)
            out.append(
                Figure(
                    f"{text}; instead of corruptions the test part {part.name} (n={len(part)}) of the same classes",
                    f"robust {name} top-1 %",
                    value,
                    {"penalty": probe.penalty, "pictures": len(part)},
                    half_width(value, len(part)),
                )
            )
        return out

    def _corrupted(self, bench: Bench, which: npt.NDArray[np.int64], name: str, severity: int) -> Labeled:
        key = f"{name} {severity}"
        if key not in bench.made:
            part = bench.test
            size = (
                int((part.pictures.heights[which].astype(np.int64) * part.pictures.widths[which]).sum())
                * part.pictures.channels
            )
            keep = size * len(self.names()) * len(self.severities) <= HELD
            pictures = Corrupted(part.pictures, which, name, severity, bench.seed, keep)
            made = replace(part, pictures=pictures, labels=None, name=f"{part.name}, {key}", names=None)
            if not keep:
                return made
            bench.made[key] = made
        return bench.made[key]


def _some(part: Labeled, most: int, seed: int) -> npt.NDArray[np.int64]:
    """Positions of at most `most` pictures, of every class in its share."""
    if len(part) <= most:
        return np.arange(len(part))
    labels = part.targets.numpy()
    draw = generator(seed, "robust")
    order = draw.permutation(len(part))
    ranked = np.empty(len(part))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        ranked[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(ranked, kind="stable")[:most]).astype(np.int64)
