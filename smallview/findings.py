"""What a check of pictures found, and what it means: alarms, notes and what cannot be known, each with the command that helps."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from smallview.data.listing import BadFile
from smallview.data.packing import MOST_BAD_FILES, MOST_BAD_SHARE
from smallview.evaluation.clues import Clue, Flipped
from smallview.evaluation.twins import Shared, Twins
from smallview.presets import method
from smallview.settings.fitting import printable

Level = Literal["alarm", "note", "unknown"]
LEVELS: tuple[Level, ...] = ("alarm", "note", "unknown")
COPIES, LEAKED, ODD = 0.1, 0.01, 0.01  # parts of the set from which copies, leaks, and constant or tiny pictures are an alarm
IS_LABEL, AHEAD, PART_AHEAD = 0.5, 0.1, 0.05  # of a clue's skill, and by how much it tells more than the shape does
MIRRORED = 0.5  # of each of two classes that is taken for the other when flipped
ONE_SIDED = 0.75  # of pictures told from their mirror images
UNEVEN = 10
MOSTLY, SOME = 0.98, 0.05
NAMED = 3
_JITTERED = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class Finding:
    """One thing to know. level: alarm, act before training; note; unknown, what these data cannot tell. do: what helps, or empty."""

    level: Level
    about: str
    text: str
    do: str = ""


@dataclass(frozen=True)
class Sizes:
    """Pixels: the short sides' least, median and greatest, the names of pictures far smaller or far larger than is good."""

    least: int
    median: int
    most: int
    tiny: tuple[str, ...]
    huge: tuple[str, ...]


@dataclass(frozen=True)
class Clues:
    """How well colour, brightness and shape alone tell the class of pictures held out; and what a flip does to the classes."""

    colour: Clue | None
    brightness: Clue
    shape: Clue
    flipped: Flipped


@dataclass(frozen=True)
class Check:
    """What a look at pictures before training found.

    pictures: those that can be read, `broken` the others, `skipped` files of other kinds. mean and std: of each channel, in 0..1.
    gray: the part of pictures without colour. constant: names of those of one colour all over. classes: pictures of each, empty without
    labels. shared: None without a test set. clues: None without labels, or too few pictures; facing, how well pictures are told
    from their mirror images, needs none.
    """

    data: str
    pictures: int
    broken: tuple[BadFile, ...]
    skipped: int
    channels: int
    sizes: Sizes
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gray: float
    constant: tuple[str, ...]
    classes: dict[str, int]
    twins: Twins
    shared: Shared | None
    clues: Clues | None
    facing: Clue | None
    seconds: float
    findings: tuple[Finding, ...] = ()

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """What to act on before training."""
        return tuple(each for each in self.findings if each.level == "alarm")

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, ready for JSON."""
        return asdict(self)


def findings(check: Check, command: str, name: str) -> tuple[Finding, ...]:
    """What to say about a check, the most important first. command: how the pictures are named there; name: the method's."""
    told: list[Finding] = []
    for rule in (
        _broken,
        _shared,
        _clues(command, name),
        _sides(command, name),
        _twins,
        _constant,
        _sizes,
        _gray,
        _classes,
        _unknown,
    ):
        told += rule(check)
    return tuple(sorted(told, key=lambda each: LEVELS.index(each.level)))


def text(check: Check) -> str:
    """The verdict in plain words, a few lines."""
    sizes = check.sizes
    sides = (
        f"{sizes.median:,} px"
        if sizes.least == sizes.most
        else f"{sizes.least:,} to {sizes.most:,} px, half under {sizes.median:,}"
    )
    head = [f"{check.data}: {_count(check.pictures, 'picture')}"]
    if check.pictures:
        colours = [" ".join(f"{value:.3f}" for value in values) for values in (check.mean, check.std)]
        head += [f"short side {sides}", f"mean {colours[0]}, std {colours[1]}"]
    if check.classes:
        head.append(f"{len(check.classes):,} classes")
    lines = [printable("; ".join(head))]
    for each in check.findings:
        lines.append(f"{each.level.upper() if each.level == 'alarm' else each.level}: {printable(each.text)}")
        if each.do:
            lines.append(f"  do: {printable(each.do)}")
    fine = _fine(check)
    if fine:
        lines.append(f"fine: {', '.join(fine)}")
    return "\n".join(lines)


def _fine(check: Check) -> list[str]:
    known = {each.about for each in check.findings}
    apart = None if known & {"colour", "brightness"} else check.clues
    asked = {
        "broken": "every picture can be read",
        "copies": "no picture twice",
        "leaks": "no test picture among the training pictures" if check.shared else "",
        "constant": "no constant pictures",
        "size": "sizes",
        "classes": "balance of classes" if check.classes else "",
        "colour": "colour does not stand for the class" if apart and apart.colour else "",
        "brightness": "brightness does not stand for the class" if apart else "",
        "flip": "pictures face no one side" if check.facing else "",
    }
    return [words for about, words in asked.items() if words and about not in known and check.pictures]


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _part(count: int, total: int) -> str:
    return f"{count:,} of {_count(total, 'picture')} ({100 * count / max(1, total):.2g} %)"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + ", ..." * (len(names) > NAMED)


def _level(count: int, total: int, least: float) -> Level:
    return "alarm" if count >= least * total else "note"


def _broken(check: Check) -> Iterator[Finding]:
    count, total = len(check.broken), check.pictures + len(check.broken)
    if not count:
        return
    first = "; ".join(f"{each.name}: {each.reason}" for each in check.broken[:NAMED]) + "; ..." * (count > NAMED)
    if count == total or (count > MOST_BAD_FILES and count > MOST_BAD_SHARE * total):
        limit = f"more than {MOST_BAD_FILES} and {MOST_BAD_SHARE:.0%}"
        yield Finding(
            "alarm",
            "broken",
            f"{_part(count, total)} cannot be read, and pretrain refuses {limit}: {first}",
            "repair or remove them",
        )
    else:
        yield Finding("note", "broken", f"{_part(count, total)} cannot be read; pretrain leaves them out: {first}")


def _shared(check: Check) -> Iterator[Finding]:
    shared = check.shared
    if shared is None or not shared.pairs:
        return
    equal = sum(same for *_, same in shared.pairs)
    named = _names([f"{a} is {b}" for a, b, _ in shared.pairs])
    count = f"{len(shared.pairs):,} of {_count(shared.tested, 'test picture')}"
    text = f"{count} are training pictures or copies of them ({equal:,} to the last bit): {named}"
    yield Finding(
        _level(len(shared.pairs), shared.tested, LEAKED),
        "leaks",
        text,
        "take them out of one of the two, or figures are too good",
    )


def _twins(check: Check) -> Iterator[Finding]:
    twins = check.twins
    for kind, groups, spare, how in (
        ("equal", twins.equal, twins.spare, "to the last bit"),
        ("nearly equal", twins.near, twins.near_spare, "in another size, quality or brightness"),
    ):
        if groups:
            named = "; ".join(_names(group) for group in groups[:NAMED])
            text = (
                f"{_part(spare, check.pictures)} are {kind} to another one, {how}, in {_count(len(groups), 'group')}: {named}"
            )
            yield Finding(_level(spare, check.pictures, COPIES), "copies", text, "keep one of each group; --json names all")
    if twins.across_classes:
        text = (
            f"{_count(twins.across_classes, 'group')} of copies stand in different classes: their labels contradict each other"
        )
        yield Finding("note", "copies", text)


def _constant(check: Check) -> Iterator[Finding]:
    if check.constant:
        count = len(check.constant)
        text = f"{_part(count, check.pictures)} are of one colour all over: {_names(check.constant)}"
        yield Finding(_level(count, check.pictures, ODD), "constant", text, "remove them: nothing can be learned from them")


def _sizes(check: Check) -> Iterator[Finding]:
    sizes = check.sizes
    if sizes.tiny:
        text = f"{_part(len(sizes.tiny), check.pictures)} are far smaller than the others: {_names(sizes.tiny)}"
        yield Finding(
            _level(len(sizes.tiny), check.pictures, ODD), "size", text, "remove thumbnails and icons; they would be enlarged"
        )
    if sizes.huge:
        text = f"{_part(len(sizes.huge), check.pictures)} are very large or very long: {_names(sizes.huge)}"
        yield Finding("note", "size", text, "cut long ones into pieces; crops never show their whole")


def _gray(check: Check) -> Iterator[Finding]:
    if check.channels == 3 and check.gray >= MOSTLY:
        yield Finding(
            "note", "gray", f"{100 * check.gray:.3g} % of the pictures are gray: saturation, hue and grayscale change nothing"
        )
    elif check.channels == 3 and check.gray >= SOME:
        yield Finding("note", "gray", f"{100 * check.gray:.3g} % of the pictures are gray among coloured ones")


def _classes(check: Check) -> Iterator[Finding]:
    counts = {name: count for name, count in check.classes.items() if count}
    if len(counts) < len(check.classes):
        empty = [name for name, count in check.classes.items() if not count]
        yield Finding(
            "note", "classes", f"{len(empty):,} of {len(check.classes):,} classes have no readable picture: {_names(empty)}"
        )
    single = [name for name, count in counts.items() if count == 1]
    if single:
        text = f"{len(single):,} of {len(counts):,} classes have 1 picture: {_names(single)}"
        yield Finding(
            "note",
            "classes",
            text,
            "nothing can be both learned and tested there: add pictures, or leave these classes out of judging",
        )
    if len(counts) > 1:
        large, small = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        ratio = counts[large] / counts[small]
        if ratio >= UNEVEN:
            text = f"classes are uneven: {large} has {counts[large]:,}, {small} {counts[small]:,} pictures, {ratio:,.0f} times fewer"
            yield Finding("note", "classes", f"{text}; pretraining needs no balance, figures of top-1 hide the small ones")


def _clues(command: str, name: str) -> Callable[[Check], Iterator[Finding]]:
    def rule(check: Check) -> Iterator[Finding]:
        clues = check.clues
        if clues is None:
            return
        colour, brightness, shape = (each.skill if each else 0.0 for each in (clues.colour, clues.brightness, clues.shape))
        for about, clue, beside, fields, mild in (
            ("colour", clues.colour, brightness, ("saturation", "hue", "grayscale"), (0.1, 0.02, 0.05)),
            ("brightness", clues.brightness, colour, ("brightness", "contrast", "solarize"), (0.1, 0.1, 0.0)),
        ):
            if clue is None or not clue.told or clue.skill < beside:
                continue
            ahead = clue.skill - shape
            told = f"{about} alone tells the class of {100 * clue.accuracy:.0f} % of pictures held out (chance {100 * clue.chance:.0f} %)"
            told += f"; edges and forms tell {100 * clues.shape.accuracy:.0f} %"
            if clue.skill >= IS_LABEL and ahead >= AHEAD:
                do = _set(command, name, dict.fromkeys(fields, 0.0))
                means = "views that change it hide the class" if do else f"{name} leaves it as it is"
                yield Finding("alarm" if do else "note", about, f"{about} looks like the label: {told}; {means}", do)
            elif ahead >= PART_AHEAD:
                do = _set(command, name, dict(zip(fields, mild, strict=True)))
                means = "; milder changes are worth a try" if do else ""
                yield Finding("note", about, f"{about} tells part of the label: {told}{means}", do)

    return rule


def _sides(command: str, name: str) -> Callable[[Check], Iterator[Finding]]:
    def rule(check: Check) -> Iterator[Finding]:
        do = _set(command, name, {"flip": 0.0})
        flipped = check.clues.flipped if check.clues else None
        if flipped and flipped.mirrors:
            classes = list(check.classes)
            text = f"classes that are each other's mirror images: {_names([f'{classes[m.one]} and {classes[m.other]}' for m in flipped.mirrors])}"
            yield Finding(
                "alarm" if do else "note", "flip", f"{text}; {'flips make them one' if do else f'{name} flips nothing'}", do
            )
        elif check.facing and check.facing.accuracy - check.facing.margin >= ONE_SIDED:
            text = f"pictures face one way: {100 * check.facing.accuracy:.0f} % are told from their mirror images"
            if flipped and flipped.plain > flipped.flipped:
                text += f", and forms tell {100 * flipped.plain:.0f} % of labels plain, {100 * flipped.flipped:.0f} % flipped"
            yield Finding(
                "note", "flip", text + "; where the side has a meaning, as in writing, do without flips" * bool(do), do
            )

    return rule


def _unknown(check: Check) -> Iterator[Finding]:
    if check.clues is None and check.pictures:
        why = "too few pictures of each class" if check.classes else "without labels (class folders, or an .npz with labels)"
        yield Finding("unknown", "labels", f"{why}: whether colour, brightness or side tell the class apart cannot be said")


def _set(command: str, name: str, values: dict[str, float]) -> str:
    """The command that trains with milder views, for the fields that change more in them; empty where none does."""
    sets = [
        f"--set method.views.{i}.{field}={value:g}"
        for i, view in enumerate(method(name).views)
        for field, value in values.items()
        if getattr(view, field) > value and (view.jitter or field not in _JITTERED)
    ]
    return " ".join(["smallview pretrain", shlex.quote(command), f"--method {name}", *sets]) if sets else ""
