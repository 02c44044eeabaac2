"""The parts of a report on what came out: figures beside their floors, and what they say in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from smallview.account import Group, figure, newest
from smallview.evaluation.metrics import t_factor, told_once
from smallview.output.charts import Dots, dot_plot
from smallview.output.markup import Child, Markup, join, name_of, table, tag

# the protocols that decide, in this order
DECIDING = ("linear", "linear_sgd", "knn", "lowshot", "finetune")
MOST_DOTS = 24
WATCH = {
    "healthy": "the embeddings stayed spread out and kept their dimensions",
    "shrinking": "the embeddings lost spread or dimensions; a longer run may collapse",
    "collapsed": "all pictures got nearly the same embedding, and the encoder tells little apart",
    "stuck at ln K": "the loss stayed where nothing is told apart",
    "diverging": "the loss or the embeddings ran away",
    "too large learning rate": "the weights were thrown about more than they learned",
    "waiting for data": "the processor waited for pictures; what was learned is sound",
}


@dataclass(frozen=True)
class Judged:
    """A figure of a group: its values by seed, half its 95 % interval over test pictures, its floors, and how many test pictures have a
    near-duplicate in the training part.
    """

    protocol: str
    metric: str
    part: str
    values: tuple[float, ...]
    interval: float | None
    pixels: float | None
    untrained: float | None
    leaked: float
    text: str

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.values)

    @property
    def margin(self) -> float | None:
        """How far from a floor the mean has to be: the larger of what other test pictures and what other seeds would change.

        A floor is judged on the same pictures; its own interval is taken to be as wide.
        """
        of_pictures = None if self.interval is None else math.sqrt(2.0) * self.interval
        n = len(self.values)
        of_seeds = t_factor(n) * stdev(self.values) / math.sqrt(n) if n > 1 else None
        return max((one for one in (of_pictures, of_seeds) if one is not None), default=None)


def judged(group: Group) -> list[Judged]:
    """The group's figures, those that decide first."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    for run in group.runs:
        for row in newest(run.rows):
            key = str(row.settings.get("protocol", "")), row.metric, str(row.settings.get("test", "test"))
            found.setdefault(key, []).append(row)

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return fmean(known) if known else None

    out = [
        Judged(
            *key,
            tuple(row.value for row in rows),
            mean([row.interval for row in rows]),
            mean([row.floor_pixels for row in rows]),
            mean([row.floor_untrained for row in rows]),
            max(figure(row.settings, "near_duplicates") or 0.0 for row in rows),
            rows[-1].protocol,
        )
        for key, rows in found.items()
    ]
    rank = {name: i for i, name in enumerate(DECIDING)}
    return sorted(out, key=lambda one: rank.get(one.protocol, len(rank)))


def _against(one: Judged, floor: float | None) -> str | None:
    """above, below, or level with a floor; None where it is not known or has no interval."""
    if floor is None or one.margin is None:
        return None
    gap = one.mean - floor
    return "level" if abs(gap) <= one.margin else "above" if gap > 0 else "below"


def lead(one: Judged) -> str:
    """Better than its floors, in one sentence."""
    floors = {"raw pixels": _against(one, one.pixels), "the untrained encoder": _against(one, one.untrained)}
    said = {"above": "better than {}", "level": "not shown to be better than {}", "below": "worse than {}"}
    parts = []
    for stand, words in said.items():
        names = [name for name, found in floors.items() if found == stand]
        if names:
            parts.append(words.format((" or " if stand == "level" else " and ").join(names)))
    told = "; ".join(parts) or f"{one.mean:.1f}, and without an interval it is not set against its floors"
    return f"By {one.metric}: {told}."


def _figures(one: Judged) -> str:
    spread = f" ± {one.interval:.1f}" if one.interval is not None else ""
    seeds = f", the mean of {len(one.values)} seeds (standard deviation {stdev(one.values):.1f})" if len(one.values) > 1 else ""
    margin = "" if one.margin is None else f" ± {one.margin:.1f}"
    gaps = [
        f"{one.mean - floor:+.1f}{margin} against {name} ({floor:.1f})"
        for name, floor in (("raw pixels", one.pixels), ("the untrained encoder", one.untrained))
        if floor is not None
    ]
    told = f"On {one.part}: {one.mean:.1f}{spread}{seeds}"
    leaks = f" {one.leaked:,.0f} test pictures have a near-duplicate among those fitted on." if one.leaked else ""
    return told + ("; " + ", ".join(gaps) if gaps else "") + "." + leaks


def watch_words(name: str | None) -> str:
    """What the watch said, in a sentence."""
    if name is None:
        return "The watch gave no verdict: it does from step 100 of a training or stage on."
    return f"The watch calls it {name}" + (f": {WATCH[name]}." if name in WATCH else ".")


def verdict(groups: Sequence[Group]) -> Markup:
    """What came out, in words, a group at a time."""
    items = []
    for group in groups:
        found = judged(group)
        deciding = [one for one in found if one.protocol in DECIDING and (one.pixels is not None or one.untrained is not None)]
        lines: list[Markup] = []
        if len(groups) > 1 or len(group.runs) > 1:
            seeds = f", {len(group.runs)} seeds" if len(group.runs) > 1 else ""
            lines.append(tag("p", name_of(group.name), seeds, class_="group"))
        if deciding:
            seen = dict.fromkeys((one.protocol, one.part) for one in deciding)
            first, *others = [next(one for one in deciding if (one.protocol, one.part) == key) for key in list(seen)[:3]]
            lines += [tag("p", lead(first), class_="lead"), tag("p", _figures(first))]
            lines += [tag("p", tag("b", lead(one)), " ", _figures(one)) for one in others]
        else:
            lines.append(tag("p", "Not judged yet: whether it is better than raw pixels is not known.", class_="lead"))
        said = list(dict.fromkeys(watch_words(run.verdict) for run in group.runs))
        lines += [tag("p", text) for text in said]
        items.append(tag("li", lines))
    told = (
        "± is half of a 95 % interval: of a figure over test pictures, of a difference the larger of what other test pictures and "
        "other seeds would change."
    )
    some = any(judged(group) for group in groups)
    return join(tag("ul", items, class_="verdicts"), tag("p", tag("small", told)) if some else None)


def results(groups: Sequence[Group]) -> Markup:
    """Every row beside its floors, and the protocols in full."""
    parts: list[Markup] = []
    protocols: dict[tuple[str, str], str] = {}  # said once for all seeds
    for group in groups:
        found = judged(group)
        title = [tag("h3", name_of(group.name))] if len(groups) > 1 else []
        if not found:
            parts += [*title, tag("p", "No rows.")] if title else []
            continue
        dots = [
            Dots(one.metric, one.mean, one.interval, one.pixels, one.untrained)
            for one in found
            if "%" in one.metric and (one.pixels is not None or one.untrained is not None)
        ][:MOST_DOTS]
        parts += [*title, *([dot_plot(dots)] if dots else []), *_tables(group, found)]
        for one in found:
            protocols.setdefault((one.metric, re.sub(r"seed \d+", "seed", one.text)), one.text)
    if not protocols:
        return tag("p", "No rows yet. ", tag("code", "smallview evaluate RUN --train LABELED --test LABELED"), " writes them.")
    each, common = told_once(list(protocols.values()))
    full = [join(tag("dt", metric), tag("dd", name_of(text))) for (metric, _), text in zip(protocols, each, strict=True)]
    full += [join(tag("dt", "all of them"), tag("dd", name_of(common)))] if common else []
    return join(parts, tag("h3", "Protocols in full"), tag("dl", full, class_="protocols"))


def _tables(group: Group, found: Sequence[Judged]) -> Iterator[Markup]:
    several = len(group.runs) > 1
    for part in dict.fromkeys(one.part for one in found):
        rows: list[list[Child]] = []
        for one in found:
            if one.part == part:
                floors = ["–" if floor is None else f"{floor:.2f}" for floor in (one.pixels, one.untrained)]
                seeds = [f"± {stdev(one.values):.2f}" if len(one.values) > 1 else "–", str(len(one.values))] if several else []
                interval = "–" if one.interval is None else f"± {one.interval:.2f}"
                rows.append([one.metric, *floors, f"{one.mean:.2f}", interval, *seeds])
        head = ["metric", "raw pixels", "untrained encoder", "this encoder", "95 % interval"]
        caption = join("Judged on ", name_of(part))
        yield table(caption, head + (["std over seeds", "seeds"] if several else []), rows, class_="figures")
