"""Numbers that change with progress: a schedule is a frozen value, resolved once at the top of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """The same number from start to end."""

    value: float

    def at(self, progress: float) -> float:
        """The value, whatever the progress."""
        return self.value


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` at progress 0 to `end` at progress 1.

    Example:
        >>> Cosine(0.99, 1.0).at(0.5)
        0.995
    """

    start: float
    end: float

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from 0 over the first `warmup` part of training, then half a cosine to 0: always finished within the budget.

    Example:
        >>> s = WarmupCosine(peak=0.4, warmup=0.25)
        >>> s.at(0.125), s.at(0.25), s.at(1.0)
        (0.2, 0.4, 0.0)
    """

    peak: float
    warmup: float = 0.0

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        if progress < self.warmup:
            return self.peak * progress / self.warmup
        rest = (progress - self.warmup) / max(1.0 - self.warmup, 1e-12)
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * min(rest, 1.0)))


Schedule = Constant | Cosine | WarmupCosine


def resolve(value: float | Schedule, progress: float) -> float:
    """The number that `value` is at `progress` in [0, 1]; plain numbers stay what they are.

    Example:
        >>> resolve(0.2, 0.7), resolve(Constant(3.0), 0.7)
        (0.2, 3.0)
    """
    return value if isinstance(value, (int, float)) else value.at(progress)
