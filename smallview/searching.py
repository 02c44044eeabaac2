"""The pictures of a set that are most like some others, in the eyes of an encoder: exact, in bounded memory, on a sheet.

Legend: N pictures, Q queries, F features, K neighbours.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from smallview.embedded import vectors_of
from smallview.errors import DataError, UsageError
from smallview.output.embed import plain_name
from smallview.output.gallery import Section, gallery
from smallview.output.sheet import Cell, check_sheet
from smallview.settle import kept_threads, thread_count
from smallview.vectors import ROWS, Vectors

QUERIES = 512
ALIKE = 0.999  # below this cosine two pictures are not the same, and are not compared
DRAWN = 40  # queries on a sheet
SHOWN_SIDE = 320  # pixels that a picture of a sheet is read with, at least
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Found:
    """What is nearest to each of Q queries, nearest first: names, cosine scores float32 and positions int64, [K] each.

    positions are places in the data as it was given: of pictures, in its order; of written embeddings, rows. itself: what the query is
    called in the data, left out of its own neighbours, or None where it is not there.
    """

    queries: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    scores: tuple[npt.NDArray[np.float32], ...]
    positions: tuple[npt.NDArray[np.int64], ...]
    itself: tuple[str | None, ...]
    asked: Vectors = field(repr=False)
    bank: Vectors = field(repr=False)
    rows: tuple[npt.NDArray[np.int64], ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return {
            "encoder_sha256": self.bank.encoder_sha256,
            "pictures": len(self.bank),
            "left_out": [plain_name(bad.name) for bad in (*self.asked.left_out, *self.bank.left_out)],
            "queries": [
                {
                    "query": plain_name(query),
                    "itself": None if itself is None else plain_name(itself),
                    "neighbours": [
                        {"name": plain_name(name), "score": round(float(score), 6), "position": int(position)}
                        | self._class(int(row))
                        for name, score, position, row in zip(names, scores, positions, rows, strict=True)
                    ],
                }
                for query, itself, names, scores, positions, rows in zip(
                    *(self.queries, self.itself, self.names, self.scores, self.positions, self.rows), strict=True
                )
            ],
        }

    def _class(self, row: int) -> dict[str, Any]:
        called = self.bank.class_of(row)
        return {} if called is None else {"class": called}


def search(
    what: str | Path | nn.Module,
    query: Any,
    data: Any,
    *,
    top: int = 12,
    out: str | Path | None = None,
    pictures: Any = None,
    device: str = "auto",
    threads: int | None = None,
    say: Say = lambda message: None,
    command: Callable[[], str] | None = None,
    **options: Any,
) -> Found:
    """The `top` pictures of data that are most like each query, by cosine similarity of what an encoder sees.

    what, options: as for embed. query: a picture's file, several, a folder, an array. data: pictures, which are embedded once, or a folder
    that `smallview embed` wrote; pictures: where the pictures of such a folder lie now. out: an image file for a sheet.

    Raises:
        DataError: data or queries that cannot be used, embeddings of another encoder or of pictures that changed. UsageError: a `top`
            under 1, an ending that is no picture's.

    Example:
        >>> pictures = np.random.default_rng(0).integers(0, 255, (5, 2, 2, 3), dtype=np.uint8)
        >>> found = search(nn.Flatten(), pictures[3:4], pictures, top=2, size=2)
        >>> found.itself, len(found.names[0]), found.scores[0].shape
        (('3',), 2, (2,))
    """
    if top < 1:
        raise UsageError(f"--top is {top}; wanted 1 or more")
    if out is not None:
        check_sheet(out)
    with kept_threads():
        torch.set_num_threads(thread_count(threads))
        own: dict[str, Any] = {"pictures": pictures, "shown": out is not None, "device": device, "threads": threads}
        bank = vectors_of(what, data, say=say, command=command, **own, **options)
        asked = vectors_of(bank.subject, query, say=say, keep=False, device=device, threads=threads)
        usable = np.flatnonzero(asked.usable)
        scores, rows = nearest(bank, asked.unit(usable), top + 1)
        found = _found(bank, asked, usable, scores.numpy(), rows.numpy(), top)
    for name, itself in zip(found.queries, found.itself, strict=True):
        if itself is not None:
            say(
                f"{name} is in {bank.name} itself"
                + f", as {itself}" * (itself != name)
                + "; it is left out of its own neighbours"
            )
    if found.names and len(found.names[0]) < top:
        say(f"{bank.name} has {len(found.names[0]):,} other pictures, fewer than --top {top:,}; all are told")
    if out is not None:
        draw(found, out, say)
    return found


def nearest(bank: Vectors, asked: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(cosine similarities, rows) [Q, k] of the k rows of a bank nearest to unit rows asked [Q, F], nearest first; fewer in a small bank.

    Exact; in memory are some thousand rows and as many similarities a query at a time. Rows without a direction are never near.
    """
    k = min(k, int(bank.usable.sum()))
    parts = []
    for begin in range(0, max(1, len(asked)), QUERIES):
        some = asked[begin : begin + QUERIES]
        best, rows = some.new_full((len(some), 0), 0.0), torch.zeros(len(some), 0, dtype=torch.int64)
        for first in range(0, len(bank), ROWS):
            similar = bank.cosines(first, min(first + ROWS, len(bank)), some).T  # [q, n]
            values, which = similar.topk(min(k, similar.shape[1]), dim=1)
            best, rows = torch.cat([best, values], 1), torch.cat([rows, which + first], 1)
            order = best.sort(dim=1, descending=True, stable=True).indices[:, :k]  # of equals, the first in the set
            best, rows = best.gather(1, order), rows.gather(1, order)
        parts.append((best, rows))
    return torch.cat([best for best, _ in parts]), torch.cat([rows for _, rows in parts])


def _found(
    bank: Vectors,
    asked: Vectors,
    usable: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    top: int,
) -> Found:
    names, kept_scores, positions, kept_rows, itself = [], [], [], [], []
    for query, near, which in zip(usable, scores, rows, strict=True):
        own = _own_row(bank, asked, int(query), near, which)
        kept = which != own
        near, which = near[kept][:top], which[kept][:top]
        itself.append(None if own < 0 else bank.names[own])
        names.append(tuple(bank.names[int(row)] for row in which))
        kept_scores.append(np.clip(near, -1.0, 1.0))
        positions.append(which if bank.positions is None or bank.written else bank.positions[which])
        kept_rows.append(which)
    queries = tuple(asked.names[int(query)] for query in usable)
    return Found(queries, tuple(names), tuple(kept_scores), tuple(positions), tuple(itself), asked, bank, tuple(kept_rows))


def _own_row(bank: Vectors, asked: Vectors, query: int, near: npt.NDArray[np.float32], which: npt.NDArray[np.int64]) -> int:
    """The row that is the query itself, or -1: the same pixels; of several copies the one of its name, else the first.

    Where the pictures of the set are not at hand, the same name and the same direction have to do.
    """
    called = os.path.basename(asked.names[query])
    alike = [int(row) for row, score in zip(which, near, strict=True) if score > ALIKE]
    named = [row for row in alike if os.path.basename(bank.names[row]) == called]
    if bank.source is None:
        return named[0] if named else -1
    if not alike:
        return -1
    mine = asked.picture(query)
    same = [row for row in dict.fromkeys([*named, *alike]) if np.array_equal(_picture(bank, row), mine)]
    return same[0] if same else -1


def _picture(bank: Vectors, row: int, short_side: int | None = None) -> npt.NDArray[np.uint8]:
    """The picture of a row; a gray square for one that is gone since."""
    try:
        return bank.picture(row, short_side)
    except DataError:
        return np.full((8, 8, 3), 200, np.uint8)


def draw(found: Found, out: str | Path, say: Say) -> Path:
    """A sheet of the first queries, each with its neighbours, their scores and names below."""
    bank = found.bank
    if len(found.queries) > DRAWN:
        say(f"the sheet shows the first {DRAWN} of {len(found.queries):,} queries")
    places = np.flatnonzero(found.asked.usable)
    sections = []
    for n, query in enumerate(found.queries[:DRAWN]):
        cells = [
            Cell(_picture(bank, int(row), SHOWN_SIDE), bank.words(int(row), score), bank.short_name(int(row)))
            for row, score in zip(found.rows[n], found.scores[n], strict=True)
        ]
        lead = Cell(_picture(found.asked, int(places[n]), 2 * SHOWN_SIDE), ("query",), query)
        sections.append(
            Section(query if len(found.queries) > 1 else "query, and its neighbours by cosine similarity", cells, lead)
        )
    heading = f"nearest of {len(bank):,} pictures in {bank.name}, by {bank.subject.name}"
    return gallery(sections, out, title=heading)
