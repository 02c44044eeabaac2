"""The methods in words: the list of all, and one preset field by field, each with its unit and in the form that `--set` takes."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from smallview.presets import PRESETS, Preset, preset
from smallview.schedules import Schedule
from smallview.settings import to_tables
from smallview.settings.slots import fields_of, slot_of
from smallview.training.cost import encoder_passes
from smallview.units import UNITS

# What is listed together, and under which heading.
FAMILIES: dict[str, tuple[str, ...]] = {
    "other pictures repel": ("simclr", "dcl", "moco_v2", "moco_v3", "ressl"),
    "nothing repels": ("byol", "simsiam", "barlow_twins", "vicreg", "lejepa"),
    "few negatives, small batches, plain views": ("simo", "simclr_small_batch", "simclr_one_patch", "simclr_noise_only"),
    "disturbances must not change the neighbours": ("relic", "relic_v2"),
    "small data, light networks": ("s3l_moco", "s3l_simclr", "s3l_byol", "light_moco"),
    "several ideas at once": ("combined",),
}

STATUS = {
    "published": "the authors' settings",
    "adapted": "the authors' method, its settings adapted to small budgets",
    "reconstructed": "put together here, for the authors' settings are not all known",
}

_COST = re.compile(r" Cost [\d./]+\.$")  # told as a fact of its own


@dataclass(frozen=True)
class Setting:
    """One line of a preset: its path, its value as `--set` reads it, and its unit; without a value, the kind that stands there."""

    path: str
    value: str | None
    unit: str
    kind: str = ""

    @property
    def text(self) -> str:
        """`path=value`, or `path: Kind` where settings of its own follow."""
        return f"{self.path}: {self.kind}" if self.value is None else f"{self.path}={self.value}"


def value_text(value: object) -> str:
    """A plain value as `--set` reads it, numbers to 6 digits.

    Example:
        >>> value_text((0.75, 4 / 3)), value_text(None), value_text(True), value_text((512,)), value_text(1.0)
        ('(0.75, 1.33333)', 'none', 'true', '(512,)', '1.0')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = f"{value:.6g}"
        return text if any(sign in text for sign in ".en") else f"{text}.0"
    if isinstance(value, tuple):
        return f"({', '.join(map(value_text, value))}{',' * (len(value) == 1)})"
    return str(value)


def settings_of(value: Any, annotation: Any, path: str, unit: str) -> Iterator[Setting]:
    """Every setting below `path`, in order; `unit` is what the field says that holds the value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known, kind, slot = fields_of(type(value)), type(value).__name__, slot_of(annotation)
        if not known:
            yield Setting(path, kind, _with_others(unit, slot.classes, kind))
            return
        if len(slot.classes) > 1:
            yield Setting(path, None, _with_others(unit, slot.classes, kind), kind)
        for name, (_, hint) in known.items():
            inner = f"{path}.{name}" if path else name
            yield from settings_of(getattr(value, name), hint, inner, UNITS[f"{kind}.{name}"])
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from settings_of(item, slot_of(annotation).mappings[0], f"{path}.{name}", unit)
    elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        for i, item in enumerate(value):
            yield from settings_of(item, slot_of(annotation).tuples[0][0], f"{path}.{i}", unit)
    else:
        yield Setting(path, value_text(value), unit)


def _with_others(unit: str, classes: Mapping[str, type], kind: str) -> str:
    """The unit, and what else may stand there; a schedule's own kinds are left to the documentation."""
    schedules = slot_of(Schedule).classes.values()
    others = [name for name, cls in classes.items() if name != kind and cls not in schedules]
    return f"{unit}; or {', '.join(others)}" if others else unit


def sections(chosen: Preset) -> dict[str, list[Setting]]:
    """The settings of a preset under the headings of the five choices, the optimizer and the run."""
    out: dict[str, list[Setting]] = {}
    method = chosen.method
    for name, (_, hint) in fields_of(cast(Any, type(method))).items():
        unit = UNITS[f"Method.{name}"]
        out[f"{name}: {unit}"] = list(settings_of(getattr(method, name), hint, f"method.{name}", unit))
    known = fields_of(Preset)
    unit = UNITS["Preset.optimizer"]
    out[f"optimizer: {unit}"] = list(settings_of(chosen.optimizer, known["optimizer"][1], "optimizer", unit))
    out["run"] = [
        Setting(name, value_text(getattr(chosen, name)), UNITS[f"Preset.{name}"])
        for name in ("encoder", "batch_size", "epochs")
    ]
    return out


def idea(name: str) -> str:
    """The first sentence of a preset's docstring.

    Example:
        >>> idea("byol")
        "BYOL: predict the momentum target's embedding of the other view"
    """
    return _told(name).split(". ")[0].removesuffix(".")


def _told(name: str) -> str:
    return " ".join((PRESETS[name].__doc__ or "").split())


def authors(source: str) -> str:
    """Authors and year of a source, three and more authors as the first one's.

    Example:
        >>> authors("Chen, Xie and He, 2021: An Empirical Study"), authors("Cao and Wu, 2021: Small is Beautiful")
        ('Chen et al., 2021', 'Cao and Wu, 2021')
    """
    names, _, year = source.split(":")[0].rpartition(", ")
    first = names.split(", ")[0]
    return f"{first} et al., {year}" if first != names else source.split(":")[0]


def list_json() -> dict[str, list[dict[str, Any]]]:
    """All methods as plain values, in alphabetical order."""
    return {"methods": [_head(name, preset(name)) for name in sorted(PRESETS)]}


def method_json(name: str) -> dict[str, Any]:
    """One method as plain values: its head, its settings as tables, and the unit of each by path.

    Raises:
        UsageError: no method is called so.
    """
    chosen = preset(name)
    units = {line.path: line.unit for lines in sections(chosen).values() for line in lines}
    return {**_head(name, chosen), "settings": to_tables(chosen), "units": units}


def _head(name: str, chosen: Preset) -> dict[str, Any]:
    return {
        "name": name,
        "summary": _told(name),
        "source": chosen.source,
        "status": chosen.status,
        "uncertain": list(chosen.uncertain),
        "cost": round(encoder_passes(chosen.method), 4),
    }


def list_text(width: int) -> str:
    """All methods for a terminal of so many columns: two lines each, or one where it is wide."""
    names = [name for family in FAMILIES.values() for name in family]
    families = {**FAMILIES, "others": tuple(name for name in sorted(PRESETS) if name not in names)}
    one_line = width >= 70 + max(map(len, map(idea, PRESETS)))
    out = [_columns("method", "paper", "settings", "cost") + one_line * "  idea"]
    for heading, members in families.items():
        out += ["", heading] * bool(members)
        for name in members:
            chosen = preset(name)
            cost = f"{encoder_passes(chosen.method):.1f}"
            facts = _columns(f"  {name}", authors(chosen.source), chosen.status, cost)
            told = idea(name)
            out += [f"{facts}  {told}"] if one_line else [facts, *_wrapped(told, width, "    ")]
    notes = (
        "cost: encoder passes per picture, forward and backward of a full view being 1. settings: published are the authors', "
        "adapted fit small budgets, reconstructed fill in what is not known."
    )
    see = [
        "",
        "see one with all its settings: smallview methods simclr",
        "train with it: smallview pretrain photos/ --method simclr",
    ]
    return "\n".join([*out, "", *_wrapped(notes, min(width, 100)), *see]) + "\n"


def _columns(name: str, paper: str, status: str, cost: str) -> str:
    return f"{name:22}{paper:28}{status:14}{cost:>4}"


def method_text(name: str, width: int) -> str:
    """One method for a terminal of so many columns: what it is, and every setting with its unit.

    Raises:
        UsageError: no method is called so.
    """
    chosen, width = preset(name), min(width, 100)
    out: list[str] = []
    for paragraph in (PRESETS[name].__doc__ or "").split("\n\n"):
        out += [*_wrapped(_COST.sub("", " ".join(paragraph.split())), width), ""]
    facts = {
        "name": name,
        "source": chosen.source,
        "status": f"{chosen.status}: {STATUS[chosen.status]}",
        "cost": f"{encoder_passes(chosen.method):.2f} encoder passes per picture (simclr: 2.00)",
    }
    if chosen.uncertain:
        facts["*"] = "this project's own choice, not the authors'"
    for key, text in facts.items():
        out += _beside(key, text, 8, width)
    for heading, lines in sections(chosen).items():
        told = heading.partition(": ")[2]
        out += ["", heading]
        shown = [
            (_mark(line.path, chosen.uncertain) + line.text, line.unit.removeprefix(f"{told}; "))
            for line in (_folded(lines, chosen) if heading.startswith("views") else lines)
        ]
        widest = max(len(left) for left, _ in shown) + 2
        for left, unit in shown:
            out += _beside(left, unit, widest, width) if widest <= width - 30 else _below(left, unit, width)
    out += ["", "train with a setting changed:", f"smallview pretrain photos/ --method {name} --set 'PATH=VALUE'"]
    return "\n".join(out) + "\n"


def _mark(path: str, uncertain: tuple[str, ...]) -> str:
    return "* " if any(path == field or path.startswith(f"{field}.") for field in uncertain) else "  "


def _folded(lines: list[Setting], chosen: Preset) -> Iterator[Setting]:
    """The views' settings, a view that is like an earlier one told by what it changes."""
    views: list[dict[str, list[Setting]]] = [{} for _ in chosen.method.views]
    for line in lines:
        _, _, number, field = line.path.split(".")[:4]
        views[int(number)].setdefault(field, []).append(line)

    def told(v: int, field: str) -> list[str]:
        begin = len(f"method.views.{v}")
        return [_mark(line.path, chosen.uncertain) + line.text[begin:] for line in views[v][field]]

    def changes(v: int, like: int) -> list[str]:
        return [field for field in views[v] if told(v, field) != told(like, field)]

    yield from (line for own in views[0].values() for line in own)
    for v in range(1, len(views)):
        like = min(range(v), key=lambda w: len(changes(v, w)))
        changed = changes(v, like)
        yield Setting(f"method.views.{v}", None, "", f"as view {like}{', except' * bool(changed)}")
        yield from (line for field in changed for line in views[v][field])


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def _beside(left: str, right: str, column: int, width: int) -> list[str]:
    told = textwrap.wrap(right, width - column) or [""]
    return [f"{left:{column}}{told[0]}".rstrip(), *(" " * column + line for line in told[1:])]


def _below(left: str, right: str, width: int) -> list[str]:
    mark, setting = left[:2], left[2:]
    first, *more = textwrap.wrap(setting, width - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return [mark + first, *(f"  {line}" for line in more), *_wrapped(right, width, " " * 8)]
