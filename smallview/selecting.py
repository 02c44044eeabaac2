"""Which pictures to label first: typical ones, unlike each other and unlike those that have labels already, in the order to label them in.

Where the labels themselves may be used, also those of which a probe fitted on them is unsure.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from smallview.data.label_list import read_table, shielded
from smallview.embedded import vectors_of
from smallview.errors import SmallviewError, UsageError, suggest
from smallview.evaluation.closeness import directions
from smallview.evaluation.coverage import cover
from smallview.evaluation.unsure import Doubt, doubt_of, enough
from smallview.files import check_folder, write_bytes
from smallview.labeled import Labeled, labeled_of
from smallview.output.group_sheet import MOST, SIDE, Shown, group_sheet
from smallview.output.sheet import check_sheet
from smallview.settle import kept_threads, thread_count
from smallview.vectors import Vectors

BY = ("coverage", "labels")
HEADER = ("order", "name", "stands_for", "covered", "unsure", "label")
Floats = npt.NDArray[np.float32]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Chosen:
    """One picture to label: its place in the order from 1, its position in the source, its name, and of how many it is the nearest chosen one.

    covered: the part of the set that is stood for once this one is labeled, 0 to 1. unsure: how unsure the labels there were leave a probe of it,
    0 to 1; None where they were not used.
    """

    order: int
    position: int
    name: str
    stands_for: int
    covered: float
    unsure: float | None = None


@dataclass(frozen=True)
class Selected:
    """The pictures to label, in order. pictures: all that there are; labeled: those that had labels; before: the part these stand for.

    by: what they were chosen by: labels only where there were enough. classes: of the labels that were used, in how many pictures each. right: the
    part of these whose class a probe from the others tells, 0 to 1; None where labels were not used.
    """

    data: str
    chosen: tuple[Chosen, ...]
    pictures: int
    labeled: int
    before: float
    seed: int
    by: str = "coverage"
    classes: dict[str, int] = field(default_factory=dict)
    right: float | None = None

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Where they are in the source, int64 [n], in order."""
        return np.array([one.position for one in self.chosen], np.int64)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, ready for JSON."""
        return asdict(self)


def select(
    what: str | Path | nn.Module,
    data: Any,
    n: int,
    *,
    labeled: Any = None,
    by: Literal["coverage", "labels"] = "coverage",
    seed: int = 0,
    out: str | Path | None = None,
    sheet: str | Path | None = None,
    say: Say = lambda message: None,
    **options: Any,
) -> Selected:
    """Choose the n pictures to label first; the first m of them are the choice of m. No label is looked at, except with by="labels".

    what: an encoder, as for embed. data: pictures as for pretrain, or what embed wrote of them. labeled: those that have labels already, one
    value or a list of several: a .csv as this writes it in which labels were filled in, a file of names, {name or position: label}, positions in
    the data, or other pictures (`labeled_of`). by: "coverage", or "labels": what a probe from these labels is unsure of counts
    for more; where they are too few, coverage all the same, and `say` tells. seed: draws those that must be stood for, in sets over 8,192
    pictures. out: a .csv; sheet: a picture file. options: pictures, device, threads, as for `vectors_of`.

    Raises:
        UsageError: more pictures than there are to choose from, a file that cannot be meant, or an `out` in which there are labels.
            DataError: data that cannot be used.

    Example:
        >>> images = np.zeros((9, 8, 8, 3), np.uint8)
        >>> images[3:5, :4], images[5:, :, 4:] = 255, 255
        >>> flat = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        >>> select(flat, images, 3, threads=1, keep=False).positions.tolist()
        [5, 0, 3]
    """
    if by not in BY:
        raise UsageError(f'by is "{by}"{suggest(str(by), BY)}')
    if n < 1:
        raise UsageError(f"n is {n}; wanted 1 or more pictures to label")
    if sheet is not None:
        check_sheet(sheet)
    if out is not None:
        _check_csv(out)
    made = vectors_of(what, data, say=say, shown=sheet is not None, **options)
    places = np.arange(len(made)) if made.positions is None else made.positions
    had = labeled_of(what, made, labeled, values=by == "labels", say=say, options=options)
    free = int((~had.known & made.usable).sum())
    if n > free:
        raise UsageError(f"{n:,} pictures are asked for and {made.name} has {free:,} to choose from; wanted at most these")
    with kept_threads():
        torch.set_num_threads(thread_count(options.get("threads")))
        rows = np.concatenate([made.unit(slice(None)).numpy(), had.others])
        doubt = _doubt(rows, had, say) if by == "labels" else None
        found = cover(rows, n, had.having, weights=None if doubt is None else doubt.weights, seed=seed)
        stands = _stands_for(rows, found.chosen, np.flatnonzero(had.having), len(made))
    chosen = tuple(
        Chosen(
            *(order, int(places[i]), made.names[i], int(stands[order - 1]), round(float(part), 4)),
            None if doubt is None else round(float(doubt.unsure[i]), 4),
        )
        for order, (i, part) in enumerate(zip(found.chosen.tolist(), found.covered, strict=True), 1)
    )
    path = os.fspath(data) if isinstance(data, (str, os.PathLike)) else made.name
    used = {} if doubt is None else {name: int((had.labels == k).sum()) for k, name in enumerate(had.classes)}
    selected = Selected(
        *(path, chosen, len(made), int(had.having.sum()), round(found.before, 4), seed),
        by="coverage" if doubt is None else by,
        classes=used,
        right=None if doubt is None else round(doubt.right, 4),
    )
    if out is not None:
        _check_csv(out)  # labels may have been filled in while this was at work
        write_csv(selected, out)
    if sheet is not None:
        _write_sheet(selected, made, found.chosen, sheet)
    return selected


def _doubt(rows: Floats, had: Labeled, say: Say) -> Doubt | None:
    """How unsure the labels leave a probe of each row; None, which is told, where they cannot say."""
    if enough(had.labels):
        return doubt_of(rows, had.labels)
    told = int((had.labels >= 0).sum())
    say(
        f"chosen by coverage: {told:,} label{'s' * (told != 1)} of {len(had.classes):,} class{'es' * (len(had.classes) != 1)} "
        "cannot tell what is unsure; that takes two classes with two labels each"
    )
    return None


def _stands_for(
    rows: npt.NDArray[np.float32], chosen: npt.NDArray[np.int64], having: npt.NDArray[np.int64], n: int
) -> npt.NDArray[np.int64]:
    """Of how many of the first n rows each chosen one is the most similar among all that are chosen or labeled: int64 [len(chosen)]."""
    unit = directions(rows)
    bank = unit[torch.from_numpy(np.concatenate([chosen, having]))].T
    counts = np.zeros(bank.shape[1], np.int64)
    for part in unit[:n].split(2048):
        nearest = (part @ bank).argmax(1)[part.norm(dim=1) > 0.5]
        counts += np.bincount(nearest.numpy(), minlength=len(counts))
    return counts[: len(chosen)]


def _check_csv(out: str | Path) -> None:
    """Tells of a file that cannot be written, or would be lost: only a list in which no label was filled in is replaced."""
    path = Path(out)
    if path.suffix.lower() != ".csv" or path.is_dir():
        raise UsageError(f'--out is "{path}"; wanted a file ending in .csv')
    check_folder(path.parent)
    if not path.exists():
        return
    head, rows = read_table(path, "--out")
    if not head:
        return
    if not {"order", "name", "label"} <= set(head):
        raise UsageError(
            f"--out {path} is there and was not written by smallview select; wanted another file, or this one moved away"
        )
    label = head.index("label")
    if filled := sum(bool(row[label].strip()) for row in rows):
        raise UsageError(
            f"--out {path} has {filled:,} label{'s' * (filled != 1)} filled in, which would be lost; "
            f"wanted another file: --labeled {path} goes on from these"
        )


def write_csv(selected: Selected, out: str | Path) -> Path:
    """Write the pictures in the order to label them in, with an empty column for the labels.

    Raises:
        SmallviewError: a file that cannot be written.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADER)
    for one in selected.chosen:
        doubt = "" if one.unsure is None else f"{one.unsure:.4f}"
        table.writerow([one.order, shielded(one.name), one.stands_for, f"{one.covered:.4f}", doubt, ""])
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise SmallviewError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error
    return path


def _write_sheet(selected: Selected, made: Vectors, rows: Sequence[int] | npt.NDArray[np.int64], sheet: str | Path) -> None:
    shown = [
        [
            Shown(
                row,
                one.name,
                (
                    *(f"{one.order}: stands for {one.stands_for:,}", f"covered {100 * one.covered:.0f} %"),
                    *(() if one.unsure is None else (f"unsure {100 * one.unsure:.0f} %",)),
                ),
            )
        ]
        for row, one in zip(rows, selected.chosen[:MOST], strict=False)
    ]
    part = f", the first {MOST} of them shown" * (len(selected.chosen) > MOST)
    title = f"{len(selected.chosen):,} of {selected.pictures:,} pictures of {made.name} to label, in order{part}."
    group_sheet(shown, lambda i: made.picture(i, SIDE), sheet, title, apart=0)
