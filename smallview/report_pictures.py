"""The part of a report that shows pictures: a sample of them as an encoder sees it, and the views of its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallview.config import RunConfig, smallest_side
from smallview.data.loading import channel_statistics
from smallview.data.pack import Pack
from smallview.data.packing import open_pack
from smallview.data.sources import Source, open_source
from smallview.data.subsets import taken
from smallview.errors import DataError, SmallviewError
from smallview.evaluation.features import extract, raw_pixels
from smallview.evaluation.subject import evaluation_pack, open_subject
from smallview.foregrounds import foregrounds_of
from smallview.output.atlas import MOST, Atlas, chart_of, extremes, make_atlas, neighbour_rows
from smallview.output.markup import Markup, join, name_of, tag
from smallview.output.sheet import Grid, view_grid
from smallview.output.sprites import sheet_of
from smallview.seeds import generator

SHOWN, DRAWS = 6, 2  # pictures and draws on the sheet of views
LONGEST = 100  # letters of a name
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Sample:
    """Some of the pictures of a source, decoded: at which positions, how many of them could not be read, and the encoder's size."""

    source: Source
    pack: Pack
    atlas: Atlas
    positions: npt.NDArray[np.int64]
    bad: int
    size: int


def sample_of(data: Any, run: Path, threads: int, say: Say) -> Sample:
    """Up to MOST pictures of any data, drawn at random but always the same, seen by the encoder of a run.

    Raises:
        DataError: data that cannot be used. SmallviewError: no encoder that can be used.
    """
    subject = open_subject(run)
    source = open_source(data)
    chosen = np.sort(generator(0, "report").permutation(len(source))[:MOST])
    some = source if len(chosen) == len(source) else taken(source, chosen, f"{source.name}-report")
    _, pack = evaluation_pack(some, subject.config, threads=threads)
    if len(pack) < 2:
        raise DataError(f"{source.name} holds {len(pack)} readable picture; wanted at least 2 to show")
    say(f"report: features of {len(pack):,} pictures of {source.name}")
    features = extract(subject.encoder, subject.config, pack, threads=threads).numpy()
    if not np.isfinite(features).all():
        raise SmallviewError(f"the encoder in {run} gives features that are not finite")
    labels = None
    if pack.labels is not None:
        labels = [shortened(str(pack.classes[int(i)] if pack.classes else int(i))) for i in pack.labels]
    say("report: the map")
    atlas = make_atlas(features, [shortened(name) for name in pack.names], labels)
    return Sample(source, pack, atlas, chosen, len(pack.bad), subject.config.size)


def shortened(name: str) -> str:
    """A name of at most LONGEST letters: its end, where names of one folder differ.

    Example:
        >>> shortened("a.png"), len(shortened("x" * 300))
        ('a.png', 100)
    """
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def atlas_part(sample: Sample, most_bytes: int) -> tuple[Markup, Markup]:
    """(the map, neighbours and extremes of a sample, the style that its sprites need)."""
    pack, atlas = sample.pack, sample.atlas
    sprites = sheet_of("s0", len(pack), lambda i: pack[i], most_bytes)
    told = f"{len(pack):,} pictures of "
    drawn = f", drawn at random from {len(sample.source):,}" if len(sample.positions) < len(sample.source) else ""
    bad = f"; {sample.bad:,} could not be read" if sample.bad else ""
    agrees = None if atlas.labels is None else atlas.agreement(raw_pixels(pack, sample.size).numpy())
    share = (
        ""
        if agrees is None
        else f" Of each picture's {atlas.which.shape[1]} nearest others {100 * agrees[0]:.0f} % are of its class; by raw pixels "
        f"{100 * agrees[1]:.0f} % are, drawn at random {100 * agrees[2]:.0f} % would be."
    )
    how = f"The map is {atlas.how}: near means alike to the encoder, axes and distances between groups mean nothing."
    keys = "Point at a picture, or move from one to the next with the arrow keys."
    content = join(
        tag("p", told, name_of(sample.source.name), f"{drawn}{bad}.{share}"),
        tag("h3", "Map"),
        tag("p", f"{how} {keys}"),
        chart_of(atlas, sprites),
        tag("h3", "Neighbours"),
        neighbour_rows(atlas, sprites),
        extremes(atlas, sprites),
    )
    return content, sprites.css


def views_part(sample: Sample, config: RunConfig, most_bytes: int, say: Say) -> tuple[Markup, Markup]:
    """(a table of what the network saw of a few pictures, the style that its sprites need)."""
    source = sample.source
    chosen = sample.positions[np.sort(generator(config.seed, "report views").permutation(sample.pack.index)[:SHOWN])]
    pack = open_pack(taken(source, chosen, f"{source.name}-views"), short_side=smallest_side(config), kind=config.pack)
    of_mean = any(view.mask_background > 0.0 and view.background == "mean" for view in config.method.views)
    grid = view_grid(
        *(pack, config.method.views, config.size),
        seed=config.seed,
        rows=SHOWN,
        repeats=DRAWS,
        foregrounds=foregrounds_of(pack, config, None, say),
        mode="parity" if config.augmentation == "parity" else "fast",
        mean=channel_statistics(pack, config.seed)[0].tolist() if of_mean else None,
        names=pack.names,
    )
    return _table(grid, most_bytes)


def _table(grid: Grid, most_bytes: int) -> tuple[Markup, Markup]:
    cells = [cell for row in grid.rows for cell in row]
    sprites = sheet_of("v0", len(cells), lambda i: cells[i].pixels, most_bytes, most_side=64)
    columns = len(grid.titles)
    rows = []
    for r, row in enumerate(grid.rows):
        name = shortened(row[0].name)
        made = []
        for c, cell in enumerate(row):
            words = ", ".join(cell.words)
            below: Markup | str = name_of(name) if c == 0 else words
            alt = name if c == 0 else f"{grid.titles[c]} of {name}: {words}"
            inner = join(sprites.show(r * columns + c, alt), tag("span", below, class_="name"))
            made.append(tag("th", inner, scope="row") if c == 0 else tag("td", inner))
        rows.append(tag("tr", made))
    head = tag("thead", tag("tr", [tag("th", title, scope="col") for title in grid.titles]))
    told = tag("caption", "What the network saw of a few pictures, and what was drawn for it")
    inner = tag("table", told, head, tag("tbody", rows), class_="views")
    return tag("div", inner, class_="wide", tabindex="0", role="region", aria_label="views"), sprites.css
