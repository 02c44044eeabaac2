"""Curves as SVG in the page itself: thin lines, few marks, values at the ends, the same figures as a table below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from smallview.output.markup import Markup, join, name_of, tag

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380, 190, 46, 12, 14, 24
MOST_POINTS = 400
MOST_TOLD = 4  # lines whose last values are written beside them
LOG_FROM = 200.0  # times the smallest value, from which a scale is logarithmic
COLOURS = 8


@dataclass(frozen=True)
class Series:
    """A line: its name, its points (x rising, y finite), the number of its colour, and what all lines of that colour are together."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    group: str = ""


@dataclass(frozen=True)
class Chart:
    """What is drawn on one pair of axes. edges: where along x a new stage begins, and what it is called there. span: from and to which x,
    by default as far as there are points. log: may the scale be logarithmic.
    """

    title: str
    series: Sequence[Series]
    unit: str = ""
    edges: Sequence[tuple[float, str]] = ()
    span: tuple[float, float] | None = None
    log: bool = True


def number(value: float) -> str:
    """A figure for a reader: three digits that matter, thousands with commas.

    Example:
        >>> [number(x) for x in (0, 0.00123, 0.5, 5.144, 41.26, 1234.5, 1.2e-9, 3.2e14)]
        ['0', '0.00123', '0.5', '5.14', '41.3', '1,234', '1.2e-09', '3.2e+14']
    """
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round figures from low to high, at most so many steps.

    Example:
        >>> ticks(0.0, 61.0), ticks(4.1, 5.3)
        ([0.0, 20.0, 40.0, 60.0], [4.5, 5.0])
    """
    rough = (high - low) / most
    if not rough > 0.0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of the points, with the lowest and the highest of every stretch, so that no spike is lost.

    Example:
        >>> line = [(float(x), 100.0 if x == 7001 else 1.0) for x in range(10_000)]
        >>> len(thinned(line)) <= MOST_POINTS, (7001.0, 100.0) in thinned(line)
        (True, True)
    """
    if len(points) <= MOST_POINTS:
        return list(points)
    pieces = MOST_POINTS // 2 - 1
    kept = {0, len(points) - 1}
    for k in range(pieces):
        part = range(k * len(points) // pieces, (k + 1) * len(points) // pieces)
        kept |= {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def _spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels that would like to stand there, moved apart so far that none lies on another."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = list(wanted)
    for before, i in zip([None, *order], order, strict=False):
        places[i] = max(wanted[i], low if before is None else places[before] + gap)
    over = max(places, default=0.0) - high
    for after, i in zip([None, *order[::-1]], order[::-1], strict=False):
        places[i] = min(places[i], high if after is None else places[after] - gap) if over > 0 else places[i]
    return places


def _words(chart: Chart) -> str:
    """The chart for who cannot see it."""
    told = []
    for one in chart.series:
        (x0, y0), (x1, y1) = one.points[0], one.points[-1]
        low, high = min(one.points, key=lambda p: p[1]), max(one.points, key=lambda p: p[1])
        told.append(
            f"{one.name}: {number(y0)} at step {x0:,.0f}, {number(y1)} at step {x1:,.0f}; lowest {number(low[1])} at step {low[0]:,.0f}, "
            f"highest {number(high[1])} at step {high[0]:,.0f}"
        )
    told += [f"from step {x:,.0f}: {name}" for x, name in chart.edges]
    return ". ".join(told) + "."


def _figures(chart: Chart) -> Markup:
    """A dozen points of every line as a table, folded away."""
    xs = sorted({x for one in chart.series for x, _ in one.points})
    some = sorted({xs[round(i * (len(xs) - 1) / 11)] for i in range(12)})
    values = [dict(one.points) for one in chart.series]
    head = tag("tr", [tag("th", title, scope="col", class_="n") for title in ("step", *(one.name for one in chart.series))])
    rows = [
        tag(
            "tr",
            tag("th", f"{x:,.0f}", scope="row", class_="n"),
            [tag("td", number(known[x]) if x in known else "–", class_="n") for known in values],
        )
        for x in some
    ]
    inner = tag("table", tag("caption", chart.title), tag("thead", head), tag("tbody", rows))
    return tag("details", tag("summary", "figures"), tag("div", inner, class_="wide", tabindex="0"))


def draw(chart: Chart) -> Markup:
    """The chart as a figure; empty where no line has a point."""
    series = [one for one in chart.series if one.points]
    if not series:
        return Markup("")
    chart = replace(chart, series=series)
    xs, ys = [x for one in series for x, _ in one.points], [y for one in series for _, y in one.points]
    log = chart.log and min(ys) > 0.0 and max(ys) / min(ys) > LOG_FROM
    low, high = (math.log10(min(ys)), math.log10(max(ys))) if log else (min(ys), max(ys))
    if not log and 0.0 < low < 0.6 * high:
        low = 0.0
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = (low if low == 0.0 else low - room), high + room
    first, last = chart.span or (min(xs), max(xs))
    right = RIGHT + 6.3 * max(len(number(one.points[-1][1])) for one in series)

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - right) * ((x - first) / (last - first) if last > first else 0.5)

    def down(y: float) -> float:
        value = math.log10(y) if log else y
        return TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (value - low) / (high - low))

    marks: list[Markup] = []
    shown = [10.0**p for p in range(math.ceil(low), math.floor(high) + 1)] if log else ticks(low, high)
    for y in shown:
        marks += [
            tag("line", x1=LEFT, x2=f"{WIDTH - right:.1f}", y1=f"{down(y):.1f}", y2=f"{down(y):.1f}", class_="grid"),
            tag("text", number(y), x=LEFT - 6, y=f"{down(y) + 3.5:.1f}", class_="y"),
        ]
    for x in ticks(first, last, 3):
        marks.append(tag("text", f"{x:,.0f}", x=f"{across(x):.1f}", y=HEIGHT - 8, class_="x"))
    for x, name in chart.edges:
        at = f"{across(max(x, first)):.1f}"
        if x > first:
            marks.append(tag("line", x1=at, x2=at, y1=TOP - 4, y2=HEIGHT - BOTTOM, class_="edge"))
        marks.append(tag("text", name, x=f"{across(max(x, first)) + 3:.1f}", y=TOP - 4, class_="stage"))
    marks.append(tag("text", "step", x=f"{WIDTH - right + 6:.1f}", y=HEIGHT - 8))
    said: set[tuple[str, float]] = set()
    ends = _spread([down(one.points[-1][1]) for one in series], 11.0, TOP, HEIGHT - BOTTOM)
    for one, end in zip(series, ends, strict=True):
        points = thinned(one.points)
        path = "M" + "L".join(f"{across(x):.1f} {down(y):.1f}" for x, y in points)
        colour = f"c{one.colour % COLOURS}"
        marks.append(tag("path", d=path, class_=f"curve {colour}"))
        x, y = one.points[-1]
        told = number(y)
        marks.append(tag("circle", cx=f"{across(x):.1f}", cy=f"{down(y):.1f}", r="2.4", class_=f"end {colour}"))
        if (told, x) not in said and len(series) <= MOST_TOLD:
            marks.append(tag("text", told, x=f"{across(x) + 6:.1f}", y=f"{end + 3.5:.1f}", class_=f"last {colour}"))
        said.add((told, x))
    kinds = dict.fromkeys((one.colour % COLOURS, one.group or one.name) for one in series)
    key = [tag("span", tag("i", class_=f"key c{colour}", aria_hidden="true"), name_of(called)) for colour, called in kinds]
    unit = ", ".join(part for part in (chart.unit, "logarithmic" if log else "") if part)
    title = join(tag("b", chart.title), f" {unit}" if unit else None)
    picture = tag(
        "svg", marks, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{chart.title} by step. {_words(chart)}"
    )
    legend = tag("div", key, class_="legend") if len(series) > 1 else None
    return tag("figure", tag("figcaption", title, legend), picture, _figures(chart), class_="chart")


@dataclass(frozen=True)
class Dots:
    """A judged figure beside its floors, in percent; interval: half the width of the 95 % interval, or None."""

    name: str
    value: float
    interval: float | None
    pixels: float | None
    untrained: float | None


def dot_plot(lines: Sequence[Dots]) -> Markup:
    """A line for each figure: an open square for raw pixels, an open circle for the untrained encoder, a full one for this encoder."""
    width, side, step, top = 460, 14, 34, 2
    known = [x for one in lines for x in (one.value, one.pixels, one.untrained) if x is not None]
    widest = max(one.interval or 0.0 for one in lines)
    low, high = max(0.0, min(known) - widest), min(100.0, max(known) + widest)
    low, high = (low, high) if high > low else (low - 1.0, high + 1.0)

    def across(x: float) -> float:
        return round(side + (width - 2 * side) * (min(max(x, low), high) - low) / (high - low), 1)

    bottom = top + step * len(lines)
    marks = [
        part
        for x in ticks(low, high, 5)
        for part in (
            tag("line", x1=across(x), x2=across(x), y1=top, y2=bottom, class_="grid"),
            tag("text", f"{x:g} %", x=across(x), y=bottom + 14, class_="x"),
        )
    ]
    for k, one in enumerate(lines):
        y = top + step * k + 24
        marks.append(
            tag("text", one.name, x=0, y=y - 12, class_="metric")
        )  # above its line: beside it, a long name has no room
        if one.interval is not None:
            ends = across(one.value - one.interval), across(one.value + one.interval)
            marks.append(tag("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_="whisker"))
        if one.pixels is not None:
            marks.append(tag("rect", x=f"{across(one.pixels) - 4:.1f}", y=y - 4, width=8, height=8, class_="pixels"))
        if one.untrained is not None:
            marks.append(tag("circle", cx=across(one.untrained), cy=y, r="4.5", class_="untrained"))
        marks.append(tag("circle", cx=across(one.value), cy=y, r="4.8", class_="this"))
    told = ". ".join(
        f"{one.name}: this encoder {one.value:.2f}, raw pixels {_known(one.pixels)}, untrained encoder {_known(one.untrained)}"
        for one in lines
    )
    names = {"square": "raw pixels", "ring": "untrained encoder", "full": "this encoder, 95 % interval"}
    key = [tag("span", tag("i", class_=f"key {shape}", aria_hidden="true"), name) for shape, name in names.items()]
    drawn = tag("svg", marks, viewBox=f"0 0 {width} {bottom + 20}", role="img", aria_label=told)
    return tag("figure", tag("div", key, class_="legend"), drawn, class_="bars")


def _known(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"
