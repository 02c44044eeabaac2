"""The parts of a report that need no pictures: verdict, cost, figures beside their floors, curves, settings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from smallview.account import Account, figure, newest
from smallview.errors import UsageError
from smallview.evaluation.metrics import t_factor
from smallview.explain import STATUS, idea
from smallview.output.charts import COLOURS, Chart, Dots, Series, dot_plot, draw
from smallview.output.charts import number as short
from smallview.output.markup import Child, Markup, join, name_of, table, tag
from smallview.presets import PRESETS, preset
from smallview.settings import diff, dump_toml, to_tables
from smallview.training.progress import clock

# the protocols that decide, in this order
DECIDING = ("linear", "linear_sgd", "knn", "lowshot", "finetune")
WATCH = {
    "healthy": "the embeddings stayed spread out and kept their dimensions",
    "shrinking": "the embeddings lost spread or dimensions; a longer run may collapse",
    "collapsed": "all pictures got nearly the same embedding, and the encoder tells little apart",
    "stuck at ln K": "the loss stayed where nothing is told apart",
    "diverging": "the loss or the embeddings ran away",
    "too large learning rate": "the weights were thrown about more than they learned",
    "waiting for data": "the processor waited for pictures; what was learned is sound",
}
OF_PRESET = ("method", "optimizer", "encoder", "batch_size", "epochs")
OF_RULE = ("encoder", "batch_size", "epochs")  # without a value in a preset, they follow from pictures and machine
OF_RUN = (
    "data",
    "size",
    "stem",
    "steps",
    "minutes",
    "seed",
    "subset",
    "depth",
    "weights_from",
    "augmentation",
    "dtype",
    "layout",
    "device",
)


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone."""

    name: str
    runs: tuple[Account, ...]


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


def _lead(one: Judged) -> str:
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
            lines += [tag("p", _lead(first), class_="lead"), tag("p", _figures(first))]
            lines += [tag("p", tag("b", _lead(one)), " ", _figures(one)) for one in others]
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


def missing(runs: Sequence[Account], notes: Sequence[str]) -> Markup | None:
    """What is not there or damaged, a line each; None where all is."""
    several = len(runs) > 1
    lines = [join(name_of(run.name), ": ", text) if several else join(text) for run in runs for text in run.missing]
    lines += [join(note) for note in notes]
    return tag("ul", [tag("li", line) for line in lines], class_="notes") if lines else None


def facts(runs: Sequence[Account]) -> Markup:
    """What was trained and what it cost: a column for each run."""
    columns = [dict(_facts(run)) for run in runs]
    rows: list[Markup] = []
    for name in dict.fromkeys(name for column in columns for name in column):
        told = [column.get(name, "–") for column in columns]
        same = len(set(told)) == 1  # said once for all runs
        cells = [tag("td", told[0], colspan=len(told))] if same else [tag("td", text) for text in told]
        rows.append(tag("tr", tag("th", name, scope="row"), cells))
    caption = "What was trained, and what it cost"
    titles = [tag("th", name_of(run.name), scope="col") for run in runs]
    head = tag("thead", tag("tr", tag("td"), titles)) if len(runs) > 1 else None
    inner = tag("table", tag("caption", caption), head, tag("tbody", rows), class_="facts")
    return tag("div", inner, class_="wide", tabindex="0", role="region", aria_label=caption)


def _facts(run: Account) -> Iterator[tuple[str, str]]:
    settings, cost, recorded = run.settings, run.cost, run.recorded
    method = str(settings.get("preset", run.summary.get("method", "")))
    if method:
        yield "method", f"{method}: {idea(method)}" if method in PRESETS else method
    encoder = str(settings.get("encoder", run.summary.get("encoder", "")))
    parameters, macs = figure(cost, "parameters"), figure(cost, "forward_mmacs")
    if encoder:
        told = [
            f"{parameters / 1e6:,.2f} M parameters" if parameters else "",
            f"{macs:,.1f} M products a picture" if macs else "",
        ]
        yield "encoder", ", ".join([encoder, *filter(None, told)])
    if (pictures := figure(recorded, "pictures")) is not None:
        yield "pictures", f"{pictures:,.0f} of {settings.get('data', '?')}"
    stages = settings.get("stages")
    if isinstance(stages, list) and stages:
        sizes = [str(stage.get("size", "?")) for stage in stages if isinstance(stage, dict)]
        yield "size", f"{len(stages)} stages: {', '.join(sizes)} px; judged at {settings.get('size', '?')} px"
    elif figure(settings, "size") is not None:
        yield "size", f"{settings['size']} px"
    steps, epochs, images = figure(cost, "steps"), figure(cost, "epochs"), figure(cost, "images")
    if steps is not None:
        told = [f"{steps:,.0f} of {settings.get('batch_size', '?')} pictures"]
        told += [f"{epochs:.4g} epochs"] if epochs is not None else []
        told += [f"{images:,.0f} pictures seen"] if images is not None else []
        yield "steps", ", ".join(told)
    yield "seed", str(settings.get("seed", run.summary.get("seed", "?")))
    seconds, expected = figure(cost, "train_seconds"), figure(cost, "forecast_seconds")
    if seconds is not None:
        yield "training time", clock(seconds) + (f" ({clock(expected)} were forecast)" if expected is not None else "")
    flops = figure(cost, "flops")
    if flops is not None:
        yield "training compute", f"{flops / 1e15:.3g} PFLOP" if flops >= 1e13 else f"{flops / 1e12:.3g} TFLOP"
    memory, expected = figure(cost, "peak_memory_mib"), figure(cost, "forecast_memory_mib")
    if memory is not None:
        yield "peak memory", f"{memory:,.0f} MiB" + (f" ({expected:,.0f} were forecast)" if expected is not None else "")
    machine = [str(recorded[name]) for name in ("machine",) if name in recorded]
    threads = figure(cost, "threads") or figure(settings, "threads")
    if machine or threads:
        yield "machine", ", ".join([*machine, *([f"{threads:.0f} thread{'s' * (threads != 1)}"] if threads else [])])
    if run.verdict:
        yield "watch", run.verdict


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
        ][:12]
        parts += [*title, *([dot_plot(dots)] if dots else []), *_tables(group, found)]
        for one in found:
            protocols.setdefault((one.metric, re.sub(r"seed \d+", "seed", one.text)), one.text)
    if not protocols:
        return tag("p", "No rows yet. ", tag("code", "smallview evaluate RUN --train LABELED --test LABELED"), " writes them.")
    full = [join(tag("dt", metric), tag("dd", name_of(text))) for (metric, _), text in protocols.items()]
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


def _series(run: Account, name: str, called: str, colour: int, scale: float = 1.0, group: str = "") -> Series:
    points: dict[float, float] = {}
    for record in run.metrics:
        step, value = figure(record, "step"), figure(record, name)
        if step is not None and value is not None:
            points[step] = value * scale
    return Series(called, sorted(points.items()), colour, group)


def _edges(run: Account) -> list[tuple[float, str]]:
    """Where each stage of a run begins, and its size."""
    stages, out = run.settings.get("stages"), dict[int, float]()
    for record in run.metrics:
        step, stage = figure(record, "step"), figure(record, "stage")
        if step is not None and stage is not None:
            out.setdefault(int(stage), step)

    def called(k: int) -> str:
        known = isinstance(stages, list) and 0 < k <= len(stages) and isinstance(stages[k - 1], dict)
        return f"{stages[k - 1].get('size', '?')} px" if known and stages else f"stage {k}"

    return [(step, called(k)) for k, step in sorted(out.items())]


# title, unit, scale, and the records by their names, the one that stands for the run first
CURVES: tuple[tuple[str, str, float, dict[str, str]], ...] = (
    (
        "Spread",
        "1 fills the sphere, 0 is one point",
        1.0,
        {"watch/embedding_spread": "embeddings", "watch/feature_spread": "features"},
    ),
    ("Effective rank", "dimensions in use", 1.0, {"watch/embedding_rank": "embeddings", "watch/feature_rank": "features"}),
    ("Retrieval", "% of second views found", 100.0, {"watch/retrieval": "embeddings"}),
    ("Labels looked at", "% right", 1.0, {"online/knn": "kNN", "online/ridge": "ridge", "online/linear": "linear"}),
    ("Learning rate", "", 1.0, {"lr": "learning rate"}),
    ("Gradient size", "", 1.0, {"gradient": "gradient"}),
)


def curves(runs: Sequence[Account], groups: Sequence[Group]) -> Markup:
    """The metrics by step; of one run with its parts, of several only what stands for each."""
    terms = sorted({name for run in runs for record in run.metrics for name in record if name.startswith("loss/")})
    losses = {"loss": "loss"} | ({name: name.removeprefix("loss/") for name in terms} if len(terms) > 1 else {})
    alone = len(runs) == 1
    of = {run.name: (k, group.name) for k, group in enumerate(groups) for run in group.runs} if len(groups) > 1 else {}
    steps = [step for run in runs for record in run.metrics if (step := figure(record, "step")) is not None]
    span = (min(steps), max(steps)) if steps else None
    charts = []
    for title, unit, scale, names in (("Loss", "", 1.0, losses), *CURVES):
        if alone:
            series = [
                _series(runs[0], name, called, k, scale) for k, (name, called) in enumerate(list(names.items())[:COLOURS])
            ]
        else:
            first = next(iter(names))
            coloured = [(run, *of.get(run.name, (k, ""))) for k, run in enumerate(runs)]
            series = [_series(run, first, run.name, k, scale, group) for run, k, group in coloured]
        edges = _edges(runs[0]) if alone else []
        charts.append(
            draw(Chart(title, [one for one in series if one.points], unit, edges, span, log=title != "Learning rate"))
        )
    drawn = [chart for chart in charts if chart]
    if not drawn:
        return tag("p", "No metrics.")
    told = "" if alone else "A line for each run" + (", in the colour of its group." if of else ".")
    return join(tag("p", told) if told else None, tag("div", drawn, class_="charts"))


def settings(groups: Sequence[Group]) -> Markup:
    """What differs from the preset, what was found out, and all settings."""
    parts: list[Markup] = []
    for group in groups:
        run = group.runs[0]
        if len(groups) > 1:
            parts.append(tag("h3", name_of(group.name)))
        if not run.settings:
            parts.append(tag("p", "No settings."))
            continue
        parts += [*_differences(run), *_recorded(run)]
        whole = dump_toml(dict(run.settings))
        lines = join([join(line, Markup("\n")) for line in whole.splitlines()])
        parts.append(tag("details", tag("summary", "all settings, as a file for --config"), tag("pre", lines, tabindex="0")))
    return join(parts)


def _differences(run: Account) -> Iterator[Markup]:
    name = str(run.settings.get("preset"))
    try:
        chosen = preset(name)
    except UsageError:
        yield tag("p", "The method is none of this version's, so that what differs from it cannot be told.")
        return
    theirs = {key: value for key, value in to_tables(chosen).items() if key in OF_PRESET}
    ours = {key: value for key, value in run.settings.items() if key in OF_PRESET}
    rows: list[list[Child]] = []
    for line in diff(theirs, ours):
        path, _, values = line.partition(": ")
        before, _, now = values.partition(" -> ")
        rows.append([path, *("by rule" if told == "none" and path in OF_RULE else told.strip('"') for told in (before, now))])
    yield tag("p", f"{name}: {STATUS[chosen.status]}. Source: {chosen.source}.")
    if rows:
        yield table(f"What differs from the preset {name}", ["setting", "preset", "here"], rows, words=3, class_="settings")
    else:
        yield tag("p", f"Nothing differs from the preset {name}.")


def _recorded(run: Account) -> Iterator[Markup]:
    rows: list[list[Child]] = [
        [name, _value(run.settings[name])] for name in OF_RUN if run.settings.get(name) not in (None, "none")
    ]
    yield table("The run", ["setting", "value"], rows, words=2, class_="settings")
    if run.recorded:
        found: list[list[Child]] = [[key, _value(value)] for key, value in run.recorded.items()]
        yield table("Recorded when it began", ["what", "value"], found, words=2, class_="settings")


def _value(value: object) -> str:
    if isinstance(value, float):
        return short(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
