"""A training in stages, each of its own size, depth, pictures and length; weights are carried from one to the next.

Source: Cao and Wu, 2021 (S3L): small resolution, small architecture and small data first; weights, momentum target and queue are
handed over, optimizer and learning rate begin anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from smallview.data.subsets import Subset
from smallview.errors import UsageError
from smallview.schedules import Schedule
from smallview.views.view import View


@dataclass(frozen=True)
class Stage:
    """One stage; what is None is the run's.

    size: side of its views in pixels. epochs: its own length; or share: the part of the run's epochs or minutes that it gets. depth:
    how many stages of the encoder there are, from the first on. encoder: another one, which must be able to go on as what it has learned:
    wider, deeper. subset: the pictures it sees. lr, views: its own.
    schedule: `restart` begins optimizer, learning rate and all that changes with progress anew, as S3L does; `continue` goes on
    with those of the stage before. trains: `all`, or `new` for nothing of the encoder but what this stage has added. batch_norm: with `moves` the
    statistics of what is not trained follow what passes, as in S3L's code; with `fixed` they stay.

    Raises:
        ValueError: a number outside its range, named.

    Example:
        >>> Stage(56, epochs=800.0).size
        56
    """

    size: int
    epochs: float | None = None
    share: float | None = None
    depth: int | None = None
    encoder: str | None = None
    subset: Subset | None = None
    lr: float | Schedule | None = None
    views: tuple[View, ...] | None = None
    batch_size: int | None = None
    schedule: Literal["restart", "continue"] = "restart"
    trains: Literal["all", "new"] = "all"
    batch_norm: Literal["moves", "fixed"] = "moves"

    def __post_init__(self) -> None:
        if not 4 <= self.size <= 1024:
            raise ValueError(f"size is {self.size}; wanted 4 to 1024 pixels")
        if (self.epochs is None) == (self.share is None):
            raise ValueError("epochs and share are both given or both absent; wanted one of them")
        if self.epochs is not None and not 0.0 < self.epochs <= 1e6:
            raise ValueError(f"epochs is {self.epochs:g}; wanted a number above 0")
        if self.share is not None and not 0.0 < self.share <= 1.0:
            raise ValueError(f"share is {self.share:g}; wanted a part of the run, above 0 and at most 1")
        if self.depth is not None and self.depth < 1:
            raise ValueError(f"depth is {self.depth}; wanted 1 or more stages of the encoder")
        if self.batch_size is not None and not 2 <= self.batch_size <= 2**20:
            raise ValueError(f"batch_size is {self.batch_size}; wanted 2 or more pictures")


def write_stages(stages: Sequence[Stage]) -> str:
    """Stages as `read_stages` takes them, with the names of what else they have of their own.

    Example:
        >>> write_stages([Stage(16, share=0.7, depth=3), Stage(32, share=0.3, lr=0.1)])
        '16x70% depth 3, 32x30% own lr'
    """
    return ", ".join(_written(stage) for stage in stages)


def _written(stage: Stage) -> str:
    length = f"{stage.epochs:g}" if stage.epochs is not None else f"{100.0 * (stage.share or 0.0):g}%"
    more = []
    for field in fields(stage):
        value = getattr(stage, field.name)
        if field.name not in ("size", "epochs", "share") and value != field.default:
            plain = isinstance(value, (int, str, Subset))
            more.append(f"{field.name} {value}" if plain else f"own {field.name}")
    return " ".join([f"{stage.size}x{length}", *more])


def read_stages(text: str) -> tuple[Stage, ...]:
    """Stages as one writes them on the command line: SIZExEPOCHS, or SIZExSHARE% of the run's length, with commas between.

    Raises:
        UsageError: text that means no stages.

    Example:
        >>> [(stage.size, stage.epochs, stage.share) for stage in read_stages("56x800,112x30%")]
        [(56, 800.0, None), (112, None, 0.3)]
    """
    out = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})\s*x\s*(\d+(?:\.\d+)?)\s*(%?)\s*", part)
        if found is None:
            raise UsageError(
                f'--stages is "{text}", where "{part.strip()}" is no stage; wanted SIZExEPOCHS, as in 56x800,112x200, or SIZExSHARE%, '
                "as in 16x70%,32x30%; the rest by --set stages.0.depth=3"
            )
        number = float(found[2])
        try:
            out.append(
                Stage(int(found[1]), share=round(number / 100.0, 6)) if found[3] else Stage(int(found[1]), epochs=number)
            )
        except ValueError as error:
            raise UsageError(f'--stages: "{part.strip()}": {error}') from None
    return tuple(out)


def check_stages(stages: Sequence[Stage]) -> None:
    """Whether stages fit together.

    Raises:
        ValueError: they do not, with what is wrong.
    """
    if not stages:
        return
    if len({stage.epochs is None for stage in stages}) > 1:
        raise ValueError("stages have epochs and shares of the run; wanted one kind for all")
    shares = [stage.share for stage in stages if stage.share is not None]
    if shares and abs(sum(shares) - 1.0) > 1e-3:
        raise ValueError(f"stages have {sum(shares):.0%} of the run between them; wanted 100 %")
    if stages[0].schedule == "continue" or stages[0].trains == "new":
        raise ValueError("stages.0 goes on with a stage before it and there is none; wanted schedule restart and trains all")


def spans(stages: Sequence[Stage]) -> list[tuple[float, float]]:
    """What part of a schedule each stage is: (0, 1) for one that begins anew and has nobody to go on with it.

    Example:
        >>> spans([Stage(16, 10.0), Stage(24, 10.0), Stage(32, 20.0, schedule="continue")])
        [(0.0, 1.0), (0.0, 0.3333333333333333), (0.3333333333333333, 1.0)]
    """
    out: list[tuple[float, float]] = []
    lengths = [float(stage.epochs if stage.epochs is not None else stage.share or 0.0) for stage in stages]
    first = 0
    while first < len(stages):
        last = first + 1
        while last < len(stages) and stages[last].schedule == "continue":
            last += 1
        whole, done = sum(lengths[first:last]), 0.0
        for length in lengths[first:last]:
            out.append((done / whole, 1.0 if done + length >= whole else (done + length) / whole))
            done += length
        first = last
    return out
