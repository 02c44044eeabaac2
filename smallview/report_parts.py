"""The parts of a report on the training: what it was, what it cost, its curves, its settings, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from smallview.account import Account, Group, figure
from smallview.errors import UsageError
from smallview.explain import STATUS, idea
from smallview.output.charts import COLOURS, Chart, Series, draw
from smallview.output.charts import number as short
from smallview.output.markup import Child, Markup, join, name_of, table, tag
from smallview.presets import PRESETS, preset
from smallview.settings import diff, dump_toml, to_tables
from smallview.training.progress import clock

OF_PRESET = ("method", "optimizer", "encoder", "batch_size", "epochs")
OF_RULE = ("encoder", "batch_size", "epochs")  # without a value in a preset, they follow from pictures and machine
OF_RUN = (
    "data",
    "size",
    "stem",
    "steps",
    "minutes",
    "seed",
    "exclude",
    "subset",
    "depth",
    "weights_from",
    "augmentation",
    "dtype",
    "layout",
    "device",
)


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
