"""Errors a user can act on: what was received, what was wanted, what to do; each with its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SmallviewError(Exception):
    """A failure with a one-line message for the user and an exit code for scripts.

    Example:
        >>> SmallviewError("disk full: 12 MB free, 45 MB needed; free some space and run the same command").exit_code
        1
    """

    exit_code = 1


class UsageError(SmallviewError):
    """A setting, name or flag that cannot be meant (exit 2)."""

    exit_code = 2


class DataError(SmallviewError):
    """Data that cannot be used (exit 3)."""

    exit_code = 3


class LockedError(SmallviewError):
    """A run folder that another process is using (exit 4)."""

    exit_code = 4


class DivergedError(SmallviewError):
    """Training that left the finite numbers (exit 5)."""

    exit_code = 5


class DoesNotFitError(SmallviewError):
    """A step for which memory does not suffice."""


class StoppedError(SmallviewError):
    """A run stopped early and saved; the same command goes on with it (exit 75)."""

    exit_code = 75


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` when a known name is close, and the known names otherwise.

    Example:
        >>> suggest("simcrl", ["simclr", "byol"])
        '; did you mean "simclr"?'
        >>> suggest("zzz", ["simclr", "byol"]), suggest("BYOL", ["simclr", "byol"])
        ('; there are: byol, simclr', '; did you mean "byol"?')
    """
    names = sorted(known)
    folded = {each.lower(): each for each in names}
    close = difflib.get_close_matches(name, names, n=1)
    close = close or [folded[each] for each in difflib.get_close_matches(name.lower(), list(folded), n=1)]
    return f'; did you mean "{close[0]}"?' if close else f"; there are: {', '.join(names)}"
