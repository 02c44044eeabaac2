"""Which pictures to label first: typical ones, unlike each other and unlike those that have labels already, in the order to label them in."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from smallview.data.name_list import few, found_in, read_list
from smallview.embedded import vectors_of
from smallview.errors import SmallviewError, UsageError
from smallview.evaluation.closeness import directions
from smallview.evaluation.coverage import cover
from smallview.files import check_folder, write_bytes
from smallview.output.group_sheet import MOST, SIDE, Shown, group_sheet
from smallview.output.sheet import check_sheet
from smallview.settle import kept_threads, thread_count
from smallview.vectors import Vectors

HEADER = ("order", "name", "stands_for", "covered", "label")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would compute
Bools = npt.NDArray[np.bool_]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Chosen:
    """One picture to label: its place in the order from 1, its position in the source, its name, and of how many it is the nearest chosen one.

    covered: the part of the set that is stood for once this one is labeled, 0 to 1.
    """

    order: int
    position: int
    name: str
    stands_for: int
    covered: float


@dataclass(frozen=True)
class Selected:
    """The pictures to label, in order. pictures: all that there are; labeled: those that had labels; before: the part these stand for."""

    data: str
    chosen: tuple[Chosen, ...]
    pictures: int
    labeled: int
    before: float
    seed: int

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
    seed: int = 0,
    out: str | Path | None = None,
    sheet: str | Path | None = None,
    say: Say = lambda message: None,
    **options: Any,
) -> Selected:
    """Choose the n pictures to label first; the first m of them are the choice of m. No label is looked at.

    what: an encoder, as for embed. data: pictures as for pretrain, or what embed wrote of them. labeled: those that have labels already: a file
    of names, a .csv as this writes it in which labels were filled in, positions in the data, or other pictures. seed: draws those that must be
    stood for, in sets over 8,192 pictures. out: a .csv; sheet: a picture file. options: pictures, device, threads, as for `vectors_of`.

    Raises:
        UsageError: more pictures than there are to choose from, or a file that cannot be meant. DataError: data that cannot be used.

    Example:
        >>> images = np.zeros((9, 8, 8, 3), np.uint8)
        >>> images[3:5, :4], images[5:, :, 4:] = 255, 255
        >>> flat = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        >>> select(flat, images, 3, threads=1, keep=False).positions.tolist()
        [5, 0, 3]
    """
    if n < 1:
        raise UsageError(f"n is {n}; wanted 1 or more pictures to label")
    if sheet is not None:
        check_sheet(sheet)
    if out is not None:
        _check_csv(out)
    made = vectors_of(what, data, say=say, shown=sheet is not None, **options)
    places = np.arange(len(made)) if made.positions is None else made.positions
    known, others = _labeled(what, made, labeled, say, options)
    free = int((~known & made.usable).sum())
    if n > free:
        raise UsageError(f"{n:,} pictures are asked for and {made.name} has {free:,} to choose from; wanted at most these")
    with kept_threads():
        torch.set_num_threads(thread_count(options.get("threads")))
        rows = np.concatenate([made.unit(slice(None)).numpy(), others])
        having = np.concatenate([known, np.ones(len(others), np.bool_)])
        found = cover(rows, n, having, seed=seed)
        stands = _stands_for(rows, found.chosen, np.flatnonzero(having), len(made))
    chosen = tuple(
        Chosen(order, int(places[i]), made.names[i], int(stands[order - 1]), round(float(part), 4))
        for order, (i, part) in enumerate(zip(found.chosen.tolist(), found.covered, strict=True), 1)
    )
    path = os.fspath(data) if isinstance(data, (str, os.PathLike)) else made.name
    selected = Selected(path, chosen, len(made), int(having.sum()), round(found.before, 4), seed)
    if out is not None:
        write_csv(selected, out)
    if sheet is not None:
        _write_sheet(selected, made, found.chosen, sheet)
    return selected


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


def _labeled(
    what: str | Path | nn.Module, made: Vectors, labeled: Any, say: Say, options: dict[str, Any]
) -> tuple[Bools, npt.NDArray[np.float32]]:
    """(which of the pictures have labels, bool [N]; the unit rows of other pictures that have)."""
    known, none = np.zeros(len(made), np.bool_), np.zeros((0, made.features.shape[1]), np.float32)
    if labeled is None:
        return known, none
    if isinstance(labeled, (list, tuple, range)) and labeled and all(isinstance(one, int) for one in labeled):
        labeled = np.array(labeled, np.int64)
    if isinstance(labeled, np.ndarray) and labeled.ndim == 1 and labeled.dtype.kind in "iu":
        positions = labeled.astype(np.int64)
        whole = len(made) if made.source is None else len(made.source)
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < whole:
            raise UsageError(f"labeled has positions from {positions.min()} to {positions.max()}; wanted 0 to {whole - 1}")
    elif (
        isinstance(labeled, (str, os.PathLike))
        and Path(labeled).is_file()
        and Path(labeled).suffix.lower() not in (".npy", ".npz", ".tar")
    ):
        source = made.source
        if source is None:
            raise UsageError(
                f"--labeled {labeled} has names of pictures, and where those are is not known; name their folder with --pictures"
            )
        names = _names_in(labeled)
        positions, absent = found_in(source, names, f"--labeled {labeled}")
        if absent:
            say(f"{len(absent):,} of {len(names):,} names in {labeled} are not in {source.name} ({few(absent)})")
        if not len(positions):
            say(f"{labeled} has no picture with a label")
    else:
        # what is embedded once may be asked for again; where the pictures of `data` lie says nothing of these
        rows = vectors_of(what, labeled, say=say, **{name: value for name, value in options.items() if name != "pictures"})
        return known, rows.unit(np.flatnonzero(rows.usable)).numpy()
    places = np.arange(len(made)) if made.positions is None else made.positions
    return np.isin(places, positions), none


def _names_in(path: str | os.PathLike[str]) -> list[str]:
    """The names of the pictures that have labels: all of a list; of a .csv those with a label, or all where it has no such column."""
    if Path(path).suffix.lower() != ".csv":
        return read_list(Path(path), "--labeled")
    try:
        text = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, csv.Error) as error:
        raise UsageError(
            f"--labeled {path} cannot be read ({getattr(error, 'strerror', None) or error}); wanted a .csv with a column `name`"
        ) from None
    if not rows or "name" not in rows[0]:
        raise UsageError(
            f"--labeled {path} has no column `name`, or no rows; wanted a .csv as smallview select writes it, with labels filled in"
        )
    kept = [row["name"] for row in rows if row["name"] and ("label" not in row or (row["label"] or "").strip())]
    return list(dict.fromkeys(name[1:] if name.startswith("'") and name[1:].startswith(FORMULA) else name for name in kept))


def _check_csv(out: str | Path) -> None:
    path = Path(out)
    if path.suffix.lower() != ".csv" or path.is_dir():
        raise UsageError(f'--out is "{path}"; wanted a file ending in .csv')
    check_folder(path.parent)


def write_csv(selected: Selected, out: str | Path) -> Path:
    """Write the pictures in the order to label them in, with an empty column for the labels.

    Raises:
        SmallviewError: a file that cannot be written.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADER)
    for one in selected.chosen:
        name = f"'{one.name}" if one.name.startswith(FORMULA) else one.name
        table.writerow([one.order, name, one.stands_for, f"{one.covered:.4f}", ""])
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
                (f"{one.order}: stands for {one.stands_for:,}", f"covered {100 * one.covered:.0f} %"),
            )
        ]
        for row, one in zip(rows, selected.chosen[:MOST], strict=False)
    ]
    part = f", the first {MOST} of them shown" * (len(selected.chosen) > MOST)
    title = f"{len(selected.chosen):,} of {selected.pictures:,} pictures of {made.name} to label, in order{part}."
    group_sheet(shown, lambda i: made.picture(i, SIDE), sheet, title, apart=0)
