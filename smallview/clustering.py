"""A first sorting of pictures without labels: k-means on what an encoder sees, a sheet for each cluster, a table of all. Nothing is moved.

Legend: N pictures, F features, K clusters.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from smallview.embedded import vectors_of
from smallview.errors import DataError, SmallviewError, UsageError
from smallview.evaluation.clusters import Evened, Grouping, assign, choose_k, counted, evened, kmeans, matched_accuracy, nmi
from smallview.files import check_folder, write_bytes, write_text
from smallview.output.embed import plain_name
from smallview.output.gallery import Section, gallery
from smallview.output.sheet import Cell
from smallview.seeds import generator
from smallview.settle import kept_threads, thread_count
from smallview.vectors import Vectors

FITTED, TRIED = 20_000, 2_000  # pictures that centres are fitted on, and that numbers of clusters are tried on
MOST_K, EACH = 100, 10  # the most clusters that auto tries, and the pictures of the sample that each should have
TYPICAL, ODD, OVERVIEW = (
    24,
    6,
    8,
)  # pictures on a cluster's sheet, those farthest from its centre, and each cluster's on the overview
TABLE, SUMMARY, ALL = "clusters.csv", "summary.json", "overview.png"
CLEAR = 0.15  # silhouette under which groups run into one another
SHOWN_SIDE = 160
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Clusters:
    """K clusters, the largest first: of each of N pictures its cluster int64, its distance to the centre float32 and its rank in it, from 1.

    A picture without a direction is in cluster -1. distance is Euclidean, of unit rows of evened directions, 0 to 2. silhouettes: of each
    number of clusters that auto tried. nmi, accuracy: how far clusters and labels agree, where labels are known; they decided nothing.
    """

    k: int
    sizes: tuple[int, ...]
    assigned: npt.NDArray[np.int64] = field(repr=False)
    distance: npt.NDArray[np.float32] = field(repr=False)
    rank: npt.NDArray[np.int64] = field(repr=False)
    centres: npt.NDArray[np.float32] = field(repr=False)
    silhouettes: dict[int, float] = field(repr=False)
    vectors: Vectors = field(repr=False)
    seed: int = 0
    nmi: float | None = None
    accuracy: float | None = None
    files: tuple[Path, ...] = ()

    def typical(self, cluster: int, most: int) -> npt.NDArray[np.int64]:
        """The pictures of a cluster nearest to its centre, nearest first."""
        members = np.flatnonzero(self.assigned == cluster)
        return members[np.argsort(self.rank[members])][:most]

    def as_dict(self) -> dict[str, Any]:
        """The summary, as JSON takes it."""
        return {
            "k": self.k,
            "sizes": list(self.sizes),
            "pictures": len(self.assigned),
            "without_direction": int((self.assigned < 0).sum()),
            "left_out": [plain_name(bad.name) for bad in self.vectors.left_out],
            "seed": self.seed,
            "encoder_sha256": self.vectors.encoder_sha256,
            "silhouettes": {str(k): round(value, 4) for k, value in self.silhouettes.items()},
            "nmi": None if self.nmi is None else round(self.nmi, 4),
            "accuracy": None if self.accuracy is None else round(self.accuracy, 4),
            "most_typical": [[plain_name(self.vectors.names[int(i)]) for i in self.typical(c, 3)] for c in range(self.k)],
            "files": [str(path) for path in self.files],
        }


def cluster(
    what: str | Path | nn.Module,
    data: Any,
    *,
    k: int | str = "auto",
    out: str | Path | None = None,
    seed: int = 0,
    pictures: Any = None,
    device: str = "auto",
    threads: int | None = None,
    say: Say = lambda message: None,
    command: Callable[[], str] | None = None,
    **options: Any,
) -> Clusters:
    """Sort pictures into k clusters of what an encoder sees; with `out`, a sheet for each, an overview, a table and a summary there.

    what, options: as for embed. data, pictures: as for search. k: a number, or auto: that whose silhouette is highest. The same seed
    gives the same clusters. Nothing is moved or copied.

    Raises:
        DataError: data that cannot be used, embeddings of another encoder or of pictures that changed. UsageError: a k that is no number
            from 1 to that of the pictures.

    Example:
        >>> pictures = np.repeat(np.array([[255, 0, 0], [0, 255, 0]], np.uint8), 4, axis=0).reshape(8, 1, 1, 3)
        >>> found = cluster(nn.Flatten(), pictures, size=1)
        >>> found.k, found.sizes, len(set(found.assigned[:4]))
        (2, (4, 4), 1)
    """
    number = _number(k)
    if out is not None:
        check_folder(out)
    with kept_threads():
        torch.set_num_threads(thread_count(threads))
        own: dict[str, Any] = {"pictures": pictures, "shown": out is not None, "device": device, "threads": threads}
        made = vectors_of(what, data, say=say, command=command, **own, **options)
        found = _agreeing(_sorted_in(made, number, seed, say))
    return found if out is None else write(found, Path(out), say)


def _number(k: int | str) -> int | None:
    if k == "auto":
        return None
    try:
        number = int(str(k))
    except ValueError:
        number = 0
    if number < 1:
        raise UsageError(f"--k is {k}; wanted auto, or a whole number of 1 or more")
    return number


def _sorted_in(made: Vectors, number: int | None, seed: int, say: Say) -> Clusters:
    usable = np.flatnonzero(made.usable)
    if number is not None and number > len(usable):
        raise UsageError(f"--k is {number:,} and {made.name} has {len(usable):,} pictures to sort; wanted at most that many")
    drawn = usable[generator(seed, "cluster").permutation(len(usable))]
    rows = made.unit(np.sort(drawn[:FITTED])).numpy()
    even = evened(rows)
    silhouettes: dict[int, float] = {}
    if number is None:
        if len(usable) < 4:
            raise DataError(
                f"{made.name} has {len(usable)} pictures to sort; wanted 4 or more to choose a number; name one with --k"
            )
        some = even(made.unit(np.sort(drawn[:TRIED])).numpy())
        number, silhouettes = choose_k(some, min(MOST_K, max(2, len(some) // EACH)), seed)
        best, tried = silhouettes[number], f"{min(silhouettes)} to {max(silhouettes)}"
        weak = "; nothing stands far apart here: look at the overview, and say another --k where that sorts better" * (
            best < CLEAR
        )
        say(f"k is {number}, whose silhouette is highest ({best:.2f} of 1; tried {tried} on {len(some):,} pictures){weak}")
    if (different := len(np.unique(rows, axis=0))) < number:
        raise UsageError(
            f"--k is {number:,} and {made.name} has {different:,} different pictures to the encoder; wanted at most that many"
        )
    return _ordered(made, even, kmeans(even(rows), number, seed), silhouettes, seed)


def _ordered(made: Vectors, even: Evened, fitted: Grouping, silhouettes: dict[int, float], seed: int) -> Clusters:
    """All pictures by the nearest of the fitted centres, the largest cluster first."""
    assigned, distance = np.full(len(made), -1, np.int64), np.full(len(made), np.nan, np.float32)
    for first, rows in made.parts():
        part = slice(first, first + len(rows))
        assigned[part], distance[part] = assign(even(rows.numpy()), fitted.centres)
    assigned[~made.usable], distance[~made.usable] = -1, np.nan
    sizes = np.bincount(assigned[assigned >= 0], minlength=len(fitted.centres))
    order = np.argsort(-sizes, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    assigned[assigned >= 0] = place[assigned[assigned >= 0]]
    rank = np.zeros(len(made), np.int64)
    by_cluster = np.lexsort((distance, assigned))
    starts = np.searchsorted(assigned[by_cluster], assigned[by_cluster], side="left")
    rank[by_cluster] = np.arange(len(made)) - starts + 1
    rank[assigned < 0] = 0
    return Clusters(
        *(len(order), tuple(sizes[order].tolist()), assigned, distance, rank, fitted.centres[order], silhouettes, made),
        seed=seed,
    )


def _agreeing(found: Clusters) -> Clusters:
    labels, known = found.vectors.labels, found.assigned >= 0
    if labels is None:
        return found
    table = counted(found.assigned[known], labels[known])
    return replace(found, nmi=nmi(table), accuracy=matched_accuracy(table))


def write(found: Clusters, folder: Path, say: Say) -> Clusters:
    """Write the sheets, the table and the summary; sheets of an earlier sorting there that this one does not have go.

    Raises:
        SmallviewError: a folder that cannot be written.
    """
    width = max(2, len(str(found.k - 1)))
    names = [f"cluster-{c:0{width}}.png" for c in range(found.k)]
    written = replace(found, files=tuple(folder / name for name in (TABLE, SUMMARY, ALL, *names)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder, set(names))
        write_bytes(folder / TABLE, _table(found))
        for c, name in enumerate(names):
            gallery(
                _sheet_of(found, c), folder / name, title=f"cluster {c} of {found.vectors.name}: {found.sizes[c]:,} pictures"
            )
        sections = [
            Section(f"cluster {c}: {found.sizes[c]:,} pictures", _cells(found, found.typical(c, OVERVIEW)))
            for c in range(found.k)
        ]
        gallery(sections, folder / ALL, title=_heading(found), columns=OVERVIEW, side=112)
        write_text(folder / SUMMARY, json.dumps(written.as_dict(), indent=1) + "\n")
    except (OSError, ValueError) as error:
        raise SmallviewError(
            f"cannot write to {folder}: {getattr(error, 'strerror', None) or error}; choose another --out"
        ) from error
    return written


def _heading(found: Clusters) -> str:
    by = f"{found.k} clusters, by {found.vectors.subject.name}: the most typical of each"
    return f"{len(found.assigned):,} pictures of {found.vectors.name} in {by}"


def _clear(folder: Path, kept: set[str]) -> None:
    try:
        before = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in (Path(str(path)).name for path in before):
        if re.fullmatch(r"cluster-\d+\.png", name) and name not in kept:
            (folder / name).unlink(missing_ok=True)


def _table(found: Clusters) -> bytes:
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(("name", "cluster", "distance", "rank"))
    for name, c, distance, rank in zip(found.vectors.names, found.assigned, found.distance, found.rank, strict=True):
        lines.writerow((plain_name(name), *((int(c), f"{distance:.6f}", int(rank)) if c >= 0 else ("", "", ""))))
    return file.getvalue().encode("utf-8", "backslashreplace")


def _sheet_of(found: Clusters, c: int) -> list[Section]:
    """The most typical pictures of a cluster, then the least typical ones, where it has more than fit."""
    near = found.typical(c, TYPICAL)
    sections = [Section("the most typical, nearest to the centre first", _cells(found, near))]
    if found.sizes[c] > TYPICAL + ODD:
        sections.append(Section("the least typical", _cells(found, found.typical(c, found.sizes[c])[-ODD:][::-1])))
    return sections


def _cells(found: Clusters, which: npt.NDArray[np.int64]) -> list[Cell]:
    cells = []
    for i in which.tolist():
        try:
            pixels = found.vectors.picture(i, SHOWN_SIDE)
        except DataError:  # gone since
            pixels = np.full((8, 8, 3), 200, np.uint8)
        cells.append(Cell(pixels, found.vectors.words(i, found.distance[i]), found.vectors.short_name(i)))
    return cells
