"""The kinds of options that verbs share: what they take, how help names that, what Tab offers, and the heading they stand under."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from smallview import completion, shell
from smallview.errors import UsageError


def _whole(kind: type, tokens: Sequence[Any]) -> int:
    try:
        return int(tokens[0].value)  # cyclopts alone would round 3.5
    except ValueError:
        raise ValueError(f'"{tokens[0].value}" is no whole number.') from None


def _as_given(kind: type, tokens: Sequence[Any]) -> str:
    return str(tokens[0].value)


def _each_as_given(kind: type, tokens: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(token.value) for token in tokens)


def under(heading: str, order: int) -> Parameter:
    """Options under a heading of the help."""
    return Parameter(group=Group(heading, sort_key=order))


WHAT = under("What is trained", 1)
LENGTH = under("How long and how large", 2)
RUN = under("The run and its folder", 3)
WATCH = under("Watching", 4)
JUDGED = under("What is judged", 1)
HOW = under("How it is judged", 2)
SETTINGS = under("Any setting", 5)
MACHINE = under("The machine", 6)
_ENCODER = Group("An encoder of other weights, or at another size", sort_key=5)
_OUTPUT = Group("What is printed", sort_key=7)

Whole = Annotated[int, Parameter(converter=_whole, metavar="N")]
Pixels = Annotated[int, Parameter(converter=_whole, metavar="PX")]
Number = Annotated[float, Parameter(metavar="N")]
Share = Annotated[float, Parameter(metavar="SHARE")]
Minutes = Annotated[float, Parameter(metavar="MINUTES")]
Seconds = Annotated[float, Parameter(metavar="SECONDS")]
On = Annotated[bool, Parameter(negative=(), show_default=False)]
Json = Annotated[bool, Parameter(name="--json", negative=(), show_default=False, group=_OUTPUT)]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), show_default=False, group=_OUTPUT)]
Sets = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set", negative=(), consume_multiple=False, show_default=False, metavar="PATH=VALUE", group=SETTINGS.group
    ),
]
Method = Annotated[str, Parameter(metavar="NAME", completer=completion.words(*completion.METHODS))]
Encoder = Annotated[str, Parameter(metavar="NAME", completer=completion.words(*completion.ENCODERS))]
Stem = Annotated[str, Parameter(metavar="KIND", completer=completion.words(*completion.STEMS))]
Device = Annotated[str, Parameter(metavar="NAME", completer=completion.words(*completion.DEVICES), group=MACHINE.group)]
Threads = Annotated[int, Parameter(converter=_whole, metavar="N", group=MACHINE.group)]

if TYPE_CHECKING:
    Place = str
    Places = tuple[str, ...]
    Config = str
    Masks = str
else:  # a path for what Tab offers, and text as it was typed for the verb: hf:NAME is no path
    Place = Annotated[Path, Parameter(converter=_as_given, metavar="PATH")]
    Places = Annotated[
        tuple[Path, ...],
        Parameter(converter=_each_as_given, negative=(), consume_multiple=False, show_default=False, metavar="PATH"),
    ]
    Config = Annotated[Path, Parameter(converter=_as_given, metavar="FILE", group=SETTINGS.group)]
    Masks = Annotated[
        Path, Parameter(converter=_as_given, metavar="NAME|PATH", completer=completion.or_folders(*completion.MASKS))
    ]


@Parameter(name="*")
@dataclass(frozen=True)
class EncoderFlags:
    """Which weights an encoder has and what it is fed, the same for every verb that takes one.

    Parameters
    ----------
    weights
        A file of weights for the named encoder, .safetensors or torch's own, whoever wrote it.
    weights_coverage
        The share of the encoder's tensors that the file must have. Default: all of them.
    size
        Side of the views in pixels. Default: what the encoder was trained for; 32 for one that does not say it.
    stem
        auto, standard or small, for an encoder given by --weights.
    """

    weights: Annotated[Place | None, Parameter(group=_ENCODER)] = None
    weights_coverage: Annotated[Share, Parameter(group=_ENCODER)] = 1.0
    size: Annotated[Pixels | None, Parameter(group=_ENCODER)] = None
    stem: Annotated[Stem, Parameter(group=_ENCODER)] = "auto"

    def given(self) -> dict[str, Any]:
        """As functions take them."""
        return asdict(self)


@Parameter(name="*")
@dataclass(frozen=True)
class MachineFlags:
    """Where it is computed.

    Parameters
    ----------
    device
        auto, cpu, cuda or mps.
    threads
        CPU threads. Default: the cores of this machine.
    """

    device: Device = "auto"
    threads: Threads | None = None

    def given(self) -> dict[str, Any]:
        """As functions take them."""
        return asdict(self)


@Parameter(name="*")
@dataclass(frozen=True)
class OutputFlags:
    """What is said, and how.

    Parameters
    ----------
    json
        One JSON object on stdout.
    quiet
        No progress.
    """

    json: Json = False
    quiet: Quiet = False

    @property
    def say(self) -> Callable[[str], None]:
        """Where messages go."""
        return (lambda message: None) if self.quiet else shell.say


ANY_ENCODER, ANY_MACHINE, ANY_OUTPUT = EncoderFlags(), MachineFlags(), OutputFlags()


def sets_of(pairs: tuple[str, ...]) -> dict[str, object]:
    """What was given by --set, by its path.

    Raises:
        UsageError: no path=value.
    """
    out: dict[str, object] = {}
    for pair in pairs:
        path, equals, value = pair.partition("=")
        if not equals or not path:
            raise UsageError(f'--set is "{pair}"; wanted path=value, as in --set optimizer.lr=0.1')
        out[path] = value
    return out
