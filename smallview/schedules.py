"""Numbers that change with progress: a schedule is a frozen value, resolved once at the top of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Where a number that changes is looked at before the training begins.
SPAN = tuple(i / 100 for i in range(101))


@dataclass(frozen=True)
class Constant:
    """The same number from start to end."""

    value: float

    def at(self, progress: float) -> float:
        """The value, whatever the progress."""
        return self.value


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` at progress `begin` to `end` at progress 1.

    Before `begin` it is mirrored, not held: what a warm-up laid over it wants (`Product`).

    Example:
        >>> Cosine(0.99, 1.0).at(0.5), Cosine(0.99, 1.0, begin=0.2).at(0.6)
        (0.995, 0.995)
    """

    start: float
    end: float
    begin: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin < 1.0:
            raise ValueError(f"begin is {self.begin}; wanted a progress from 0 to under 1")

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        part = (progress - self.begin) / (1.0 - self.begin)
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * part))


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from 0 over the first `warmup` part of training, then half a cosine to `end`: always finished within the budget.

    Example:
        >>> s = WarmupCosine(peak=0.4, warmup=0.25)
        >>> s.at(0.125), s.at(0.25), s.at(1.0)
        (0.2, 0.4, 0.0)
    """

    peak: float
    warmup: float = 0.0
    end: float = 0.0

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        if progress < self.warmup:
            return self.peak * progress / self.warmup
        rest = (progress - self.warmup) / max(1.0 - self.warmup, 1e-12)
        return self.end + (self.peak - self.end) * 0.5 * (1.0 + math.cos(math.pi * min(rest, 1.0)))


@dataclass(frozen=True)
class Ramp:
    """Linear from `start` at progress 0 to `end` at progress `until`, and `end` from there on.

    Example:
        >>> Ramp(0.5, 1.0, until=0.6).at(0.3), Ramp(0.5, 1.0, until=0.6).at(0.9)
        (0.75, 1.0)
    """

    start: float
    end: float
    until: float = 1.0

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        done = min(progress / self.until, 1.0) if self.until > 0.0 else 1.0
        return self.start * (1.0 - done) + self.end * done


@dataclass(frozen=True)
class Cyclic:
    """Linear from `start` to `end`, `cycles` times over: what begins anew is the number, and not the training.

    Source: cyclic resolutions and rates are Kocyigit et al., 2022.

    Example:
        >>> Cyclic(0.5, 1.0, cycles=2).at(0.25), Cyclic(0.5, 1.0, cycles=2).at(0.5), Cyclic(0.5, 1.0, cycles=2).at(1.0)
        (0.75, 0.5, 1.0)
    """

    start: float
    end: float
    cycles: int = 2

    def __post_init__(self) -> None:
        if self.cycles < 1:
            raise ValueError(f"cycles is {self.cycles}; wanted 1 or more")

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        done = 1.0 if progress >= 1.0 else progress * self.cycles % 1.0
        return self.start * (1.0 - done) + self.end * done


@dataclass(frozen=True)
class Steps:
    """Piecewise constant: `values[0]` before progress `at_progress[0]`, `values[1]` from there, and so on.

    Raises:
        ValueError: not one value more than places, or places that do not rise.

    Example:
        >>> Steps((0.1, 0.01), (0.6,)).at(0.5), Steps((0.1, 0.01), (0.6,)).at(0.6)
        (0.1, 0.01)
    """

    values: tuple[float, ...]
    at_progress: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.at_progress) + 1:
            raise ValueError(
                f"{len(self.values)} values with {len(self.at_progress)} places; wanted one value more than places"
            )
        if list(self.at_progress) != sorted(set(self.at_progress)):
            raise ValueError(f"the places are {self.at_progress}; wanted them rising")

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        return self.values[sum(progress >= place for place in self.at_progress)]


@dataclass(frozen=True)
class Delayed:
    """0 before progress `until`, and then what `value` is at that progress: the warm-up of an amount.

    Example:
        >>> Delayed(Cosine(0.0, 0.2), until=0.03).at(0.02), Delayed(Cosine(0.0, 0.2), until=0.03).at(0.5)
        (0.0, 0.1)
    """

    value: float | Schedule
    until: float

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        return 0.0 if progress < self.until else resolve(self.value, progress)


@dataclass(frozen=True)
class Product:
    """One schedule times another, as in a warm-up laid over a whole cosine.

    Example:
        >>> Product(Ramp(0.0, 1.0, until=0.5), Cosine(0.4, 0.0)).at(0.5)
        0.2
    """

    first: float | Schedule
    second: float | Schedule

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        return resolve(self.first, progress) * resolve(self.second, progress)


@dataclass(frozen=True)
class Staircase:
    """A schedule that moves `stairs` times only, as codes do that set a number once per epoch.

    Example:
        >>> Staircase(Ramp(0.0, 1.0), stairs=4).at(0.49)
        0.25
    """

    value: float | Schedule
    stairs: int

    def at(self, progress: float) -> float:
        """The value at the beginning of the stair that `progress` in [0, 1] is on."""
        return resolve(self.value, min(math.floor(progress * self.stairs + 1e-9), self.stairs - 1) / self.stairs)


Schedule = Constant | Cosine | WarmupCosine | Ramp | Cyclic | Steps | Delayed | Product | Staircase


def resolve(value: float | Schedule, progress: float) -> float:
    """The number that `value` is at `progress` in [0, 1]; plain numbers stay what they are.

    Example:
        >>> resolve(0.2, 0.7), resolve(Constant(3.0), 0.7)
        (0.2, 3.0)
    """
    return value if isinstance(value, (int, float)) else value.at(progress)


def over(value: float | Schedule) -> list[float]:
    """What `value` is from beginning to end of a training, at SPAN, for checks.

    Example:
        >>> values = over(Ramp(0.0, 1.0))
        >>> len(values), values[0], values[-1], over(0.2)
        (101, 0.0, 1.0, [0.2])
    """
    return [value] if isinstance(value, (int, float)) else [value.at(progress) for progress in SPAN]
