"""What has labels already: lists, positions and other pictures brought together, one label for each picture.

Legend: N pictures to choose from, M other pictures, F features.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from smallview.data.label_list import read_labels
from smallview.data.listing import ENDINGS
from smallview.data.name_list import few, found_in
from smallview.embedded import vectors_of
from smallview.errors import UsageError
from smallview.settings.fitting import printable
from smallview.vectors import Vectors

_ARRAYS = (".npy", ".npz", ".tar", ".bin")
Say = Callable[[str], None]
Pairs = list[tuple[int, str | None]]  # positions and their labels, or None where only that there is one is known


@dataclass(frozen=True, eq=False)
class Labeled:
    """What has labels: known bool [N], which of the pictures; others float32 [M, F], unit rows of other pictures, all of which have.

    labels int64 [N + M]: a place in `classes` for each; -1 where there is no label, or only that there is one is known.
    """

    known: npt.NDArray[np.bool_]
    others: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def having(self) -> npt.NDArray[np.bool_]:
        """Which of all pictures have a label, bool [N + M]."""
        return np.concatenate([self.known, np.ones(len(self.others), np.bool_)])


def labeled_of(
    what: str | Path | nn.Module, made: Vectors, labeled: Any, *, values: bool, say: Say, options: Mapping[str, Any]
) -> Labeled:
    """Bring together what has labels: one value, or a list of several.

    A value is a file of names and labels (`read_labels`), {name or position: label}, a list of (name or position, label), positions, or other
    pictures, as for embed, with labels where they have them. values: whether it matters which labels these are; if not, none is looked
    at. options: how other pictures are embedded.

    Raises:
        UsageError: a value that cannot be meant, or two labels for one picture. DataError: a list of names of which none is there.
    """
    own: dict[int, tuple[str | None, str]] = {}  # the label of a position, and where that stands
    rows, words = [np.zeros((0, made.features.shape[1]), np.float32)], []
    for value in several(labeled):
        where, pairs = _pairs_of(made, value, say)
        if pairs is None:
            # what is embedded once may be asked for again; where the pictures of `data` lie says nothing of these
            other = vectors_of(what, value, say=say, **{name: given for name, given in options.items() if name != "pictures"})
            usable = np.flatnonzero(other.usable)
            rows.append(other.unit(usable).numpy())
            words += [other.class_of(int(i)) for i in usable]
            if values and len(usable) and other.labels is None:
                say(f"{other.name} has no labels, so that its {len(usable):,} pictures say only where there are some")
            continue
        for position, label in pairs:
            before, there = own.get(position, (None, ""))
            if values and None not in (before, label) and before != label:
                name = printable(made.names[0] if made.source is None else made.source.names[position])
                raise UsageError(
                    f'{name} is "{before}" in {there} and "{label}" in {where}; wanted one label for each picture: take one of them out'
                )
            if position not in own or label is not None:
                own[position] = label, where
    places = np.arange(len(made)) if made.positions is None else made.positions
    told = [*(own.get(int(place), (None, ""))[0] for place in places), *words] if values else []
    classes = tuple(sorted({word for word in told if word is not None}))
    number = {word: k for k, word in enumerate(classes)}
    labels = np.full(len(made) + len(words), -1, np.int64)
    labels[: len(told)] = [-1 if word is None else number[word] for word in told]
    _tell_alike(classes, say)
    return Labeled(np.isin(places, np.array(list(own), np.int64)), np.concatenate(rows), labels, classes)


def several(labeled: Any) -> list[Any]:
    """The values in what was given: it is one by itself, or a list of them. A list of positions, of pairs or of pictures is one.

    Example:
        >>> several([3, 5]), several([("a.png", "cat")]), several(["a.csv", "b.csv"])
        ([[3, 5]], [[('a.png', 'cat')]], ['a.csv', 'b.csv'])
    """
    if labeled is None or (isinstance(labeled, (list, tuple)) and not len(labeled)):
        return []
    if not isinstance(labeled, list):
        return [labeled]
    whole = all(_is_key(one) for one in labeled) and not any(isinstance(one, str) and not _is_picture(one) for one in labeled)
    return [labeled] if whole or _are_pairs(labeled) or all(_is_picture(one) for one in labeled) else list(labeled)


def _is_key(value: Any) -> bool:
    return isinstance(value, (str, int, np.integer)) and not isinstance(value, bool)


def _is_picture(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and os.fsencode(Path(value).suffix.lower()) in ENDINGS


def _are_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, (list, tuple)) and len(one) == 2 and _is_key(one[0]) for one in value
    )


def _pairs_of(made: Vectors, value: Any, say: Say) -> tuple[str, Pairs | None]:
    """(where they stand, positions in the source with their labels); None in place of these for other pictures."""
    if isinstance(value, (range, np.ndarray)) or (isinstance(value, (list, tuple)) and all(map(_is_position, value))):
        array = np.asarray(value)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            return "", None
        return "labeled", [(_place(made, int(i), array), None) for i in array]
    if isinstance(value, Mapping) or _are_pairs(value):
        pairs = [(key, _word(label)) for key, label in (value.items() if isinstance(value, Mapping) else value)]
        if odd := [key for key, _ in pairs if not _is_key(key)]:
            raise UsageError(f"labeled has the key {odd[0]!r}; wanted names or positions of pictures, each with its label")
        filled = [(key, label) for key, label in pairs if label is not None]
        numbers = np.array([key for key, _ in filled if not isinstance(key, str)], np.int64)
        by_place: Pairs = [(_place(made, int(key), numbers), label) for key, label in filled if not isinstance(key, str)]
        by_name = [(key, label) for key, label in filled if isinstance(key, str)]
        return "labeled", by_place + (_found(made, by_name, "labeled", say) if by_name else [])
    if isinstance(value, (str, os.PathLike)) and Path(value).is_file() and Path(value).suffix.lower() not in _ARRAYS:
        listed = read_labels(Path(value))
        if not listed:
            say(f"{value} has no picture with a label")
        return str(value), _found(made, listed, f"--labeled {value}", say)
    return "", None


def _is_position(value: Any) -> bool:
    return _is_key(value) and not isinstance(value, str)


def _word(label: Any) -> str | None:
    """A label as a word; None for one that is empty: None, "", or not a number."""
    word = "" if label is None or label != label else str(label).strip()
    return word or None


def _place(made: Vectors, position: int, among: npt.NDArray[np.int64]) -> int:
    whole = len(made) if made.source is None else len(made.source)
    if not 0 <= position < whole:
        raise UsageError(f"labeled has positions from {among.min()} to {among.max()}; wanted 0 to {whole - 1}")
    return position


def _found(made: Vectors, listed: Sequence[tuple[str, str | None]], what: str, say: Say) -> Pairs:
    """The positions of listed names; those that are not there are told."""
    source = made.source
    if source is None:
        raise UsageError(f"{what} has names of pictures, and where those are is not known; name their folder with --pictures")
    names = list(dict.fromkeys(name for name, _ in listed))
    positions, absent = found_in(source, names, what)
    if absent:
        where = what.removeprefix("--labeled ")
        say(f"{len(absent):,} of {len(names):,} names in {where} are not in {source.name} ({few(absent)})")
    at = {source.names[int(i)]: int(i) for i in positions}
    return [(at[name], label) for name, label in listed if name in at]


def _tell_alike(classes: tuple[str, ...], say: Say) -> None:
    """Say which classes differ in nothing but capitals: more often a slip than two classes."""
    first: dict[str, str] = {}
    for word in classes:
        if first.setdefault(word.casefold(), word) != word:
            say(f'"{first[word.casefold()]}" and "{word}" differ only in capitals and count as two classes')
