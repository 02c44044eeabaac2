"""`smallview methods` and the page on methods: all there, all with units, all true, within 80 columns."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from smallview import explain
from smallview.cli import main
from smallview.objectives import Fixed, InBatch, NearestSmoothing, NoNegatives, Queue, UniformSmoothing
from smallview.optimizers import Optimizer
from smallview.presets import PRESETS, Preset, combined, preset
from smallview.schedules import Schedule, resolve
from smallview.settings import from_tables, override, to_tables
from smallview.settings.slots import Slot, fields_of, slot_of
from smallview.training.cost import encoder_passes
from smallview.units import UNITS
from smallview.views.view import View

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
ABOUT = {"source", "status", "uncertain"}
Call = Callable[[str], tuple[int, str, str]]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(line: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(shlex.split(line))
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture(params=sorted(PRESETS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# units


def classes_in(slot: Slot) -> Iterator[type]:
    yield from slot.classes.values()
    for inner in [part for parts in slot.tuples for part in parts if part is not ...] + slot.mappings:
        yield from classes_in(slot_of(inner))


def reachable(cls: type, found: dict[str, type]) -> dict[str, type]:
    """All dataclasses that a value of this class can hold, by name."""
    if cls.__name__ not in found:
        found[cls.__name__] = cls
        for _, hint in fields_of(cls).values():
            for inner in classes_in(slot_of(hint)):
                reachable(inner, found)
    return found


def test_every_field_that_a_preset_can_hold_has_a_unit_and_no_unit_lacks_its_field() -> None:
    found = reachable(Preset, {})
    assert {"View", "Queue", "Debiased", "SIGReg", "Staircase", "Muon"} <= set(found)
    fields = {f"{name}.{field}" for name, cls in found.items() for field in fields_of(cls)}
    assert fields == set(UNITS)
    assert all(UNITS.values())


def leaves(tables: object, path: str) -> Iterator[str]:
    if isinstance(tables, Mapping):
        for key, item in tables.items():
            if key == "kind":
                yield path
            else:
                yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(tables, list) and any(isinstance(item, Mapping) for item in tables):
        for i, item in enumerate(tables):
            yield from leaves(item, f"{path}.{i}")
    else:
        yield path


def test_json_of_one_method_has_its_settings_and_the_unit_of_each(name: str, call: Call) -> None:
    code, out, err = call(f"methods {name} --json")
    told = json.loads(out)
    assert code == 0 and out.count("\n") == 1 and err == ""
    assert set(told) == {"name", "summary", "source", "status", "uncertain", "cost", "settings", "units"}
    assert from_tables(Preset, told["settings"]) == preset(name)
    assert set(leaves(told["settings"], "")) - ABOUT == set(told["units"])
    assert told["cost"] == pytest.approx(encoder_passes(preset(name).method), abs=1e-4)


def test_json_of_the_list(call: Call) -> None:
    code, out, _ = call("methods --json")
    listed = json.loads(out)["methods"]
    assert code == 0 and [entry["name"] for entry in listed] == sorted(PRESETS)
    for entry in listed:
        assert set(entry) == {"name", "summary", "source", "status", "uncertain", "cost"}
        assert entry["uncertain"] == list(preset(entry["name"]).uncertain)
        assert "\n" not in entry["summary"] and entry["summary"]


# the list


def test_every_method_has_one_family() -> None:
    names = [name for family in explain.FAMILIES.values() for name in family]
    assert sorted(names) == sorted(PRESETS)


def test_the_list_names_idea_paper_status_and_cost_of_all_within_80_columns(call: Call) -> None:
    code, out, err = call("methods")
    lines = out.splitlines()
    assert code == 0 and err == "" and "\x1b" not in out
    assert max(map(len, lines)) <= 80
    for name in PRESETS:
        chosen = preset(name)
        at = next(i for i, line in enumerate(lines) if line.split()[:1] == [name])
        assert explain.authors(chosen.source) in lines[at]
        assert lines[at].split()[-2:] == [chosen.status, f"{encoder_passes(chosen.method):.1f}"]
        assert lines[at + 1] == f"    {explain.idea(name)}", "an idea takes one line"
    assert "smallview methods simclr" in out


def test_a_wide_terminal_gets_a_line_for_each(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = call("methods")[1].splitlines()
    for name in PRESETS:
        assert sum(name in line.split() and explain.idea(name) in line for line in lines) == 1


def test_costs_in_docstrings_are_those_that_are_computed(name: str) -> None:
    found = re.search(r"Cost ([\d./]+)\.(?:\s|$)", PRESETS[name].__doc__ or "")
    assert found is not None
    assert float(Fraction(found[1])) == pytest.approx(encoder_passes(preset(name).method), abs=0.05)


# one method


def read_back(out: str) -> dict[str, str]:
    """path -> value of all printed settings; a value that was broken over lines is put together."""
    told = re.sub(r"\n {6}(?=\S)", " ", out)
    setting = r"^[* ] ((?:method|optimizer|encoder|batch_size|epochs)[\w.]*)=(\(\(.*?\)\)|\(.*?\)|\S+)"
    return dict(re.findall(setting, told, re.MULTILINE))


def near(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)):
        return a == pytest.approx(b, rel=1e-5)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(near, a, b))
    if is_dataclass(a) and type(a) is type(b):
        return all(near(getattr(a, field), getattr(b, field)) for field in fields_of(cast(Any, type(a))))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(near(a[key], b[key]) for key in a)
    return a == b


def test_what_is_printed_is_what_set_takes(name: str, call: Call) -> None:
    code, out, err = call(f"methods {name}")
    chosen = preset(name)
    assert code == 0 and err == "" and "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    again, printed = chosen, read_back(out)
    for path, value in printed.items():
        again = override(again, path, value)
    assert near(again, chosen)
    # and all is there
    nested = set(re.findall(r"^[* ] ([a-z][\w.]*): [A-Z]", out, re.MULTILINE))
    beside_views = {path for path in leaves(to_tables(chosen), "") if not path.startswith("method.views.")} - ABOUT
    assert {path for path in (*printed, *nested) if not path.startswith("method.views.")} == beside_views


def test_the_views_are_what_is_printed_and_folded(name: str, call: Call) -> None:
    chosen = preset(name).method.views
    views: list[View] = []
    out = call(f"methods {name}")[1]
    printed = read_back(out)
    for v in range(len(chosen)):
        alike = re.search(rf"method\.views\.{v}: as view (\d+)", out)
        view = replace(View(), flip=0.123) if alike is None else views[int(alike[1])]
        for field in fields_of(View):
            path = f"method.views.{v}.{field}"
            if f" {path}: " in out:  # a schedule: its own fields follow, and are read elsewhere
                view = replace(view, **{field: getattr(chosen[v], field)})
            elif path in printed:
                view = override(view, field, printed[path])
        views.append(view)
    assert near(tuple(views), chosen)


def test_printed_settings_rebuild_a_method_from_one_that_differs_everywhere_it_prints(call: Call) -> None:
    given = preset("simo")
    other = override(override(given, "method.views.0.jitter", "0.1"), "method.negatives.per_query", "3")
    other = override(override(other, "optimizer.lr", "0.5"), "method.heads.projector.hidden", "(8, 8)")
    assert other != given
    for path, value in read_back(call("methods simo")[1]).items():
        other = override(other, path, value)
    assert near(other, given)


def test_own_choices_are_marked(name: str, call: Call) -> None:
    out = call(f"methods {name}")[1]
    uncertain = preset(name).uncertain
    marked = set()
    for line in out.splitlines():
        match = re.match(r"([* ]) ((?:method|optimizer|encoder|batch_size|epochs)[\w.]*)", line)
        if match:
            ours = [field for field in uncertain if match[2] == field or match[2].startswith(f"{field}.")]
            assert (match[1] == "*") == bool(ours), line
            marked |= set(ours)
    assert marked == set(uncertain)
    assert ("this project's own choice" in out) == bool(uncertain)


def test_views_that_are_alike_are_folded_and_the_rest_of_them_told(call: Call) -> None:
    out = call("methods relic_v2")[1]
    assert "method.views.2: as view 0\n" in out and "method.views.5: as view 4\n" in out
    assert "method.views.1: as view 0, except\n" in out and "method.views.1.solarize=0.2" in out
    assert "method.views.1.jitter" not in out
    # a schedule on one side only is a difference, too
    assert "method.views.2.size=0.5" in call("methods combined")[1]


def test_other_kinds_are_named(call: Call) -> None:
    lines = " ".join(call("methods simclr")[1].split())
    assert "method.target: Shared or Momentum" in lines
    assert "method.negatives: InBatch or Queue, Fixed, NoNegatives" in lines
    assert "margin=NoMargin what negatives count for; or EqCo" in lines


@pytest.mark.parametrize("flag", ["", " --json"])
def test_a_name_nobody_knows(call: Call, flag: str) -> None:
    code, out, err = call(f"methods simcrl{flag}")
    assert (code, out) == (2, "")
    assert err == 'smallview: no method is called "simcrl"; did you mean "simclr"?\n'


# the page


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    lines = PAGE.split(heading, 1)[1].splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return table


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def widths(head: Any) -> str:
    return "-".join(map(str, (*head.hidden, head.out)))


NEGATIVES = {InBatch: "the batch", Queue: "queue", Fixed: "patch", NoNegatives: "none"}


def test_the_table_of_the_page_is_true() -> None:
    table = {cells[0].strip("`"): cells[1:] for cells in rows("## The presets")}
    assert set(table) == set(PRESETS)
    for name, (views, heads, target, negatives, objective, paper, status, cost) in table.items():
        chosen = preset(name)
        method = chosen.method
        assert int(re.split(r"\D", views)[0]) == len(method.views), name
        assert ("mask" in views) == any(view.mask_background for view in method.views), name
        predictor = method.heads.predictor
        assert heads == widths(method.heads.projector) + ("" if predictor is None else f" + {widths(predictor)}"), name
        momentum = getattr(method.target, "momentum", None)
        if momentum is None:
            assert target == "itself" + ", without gradient" * bool(getattr(method.target, "stop_gradient", False)), name
        else:
            assert target == "momentum" + ", rising" * (resolve(momentum, 1.0) > resolve(momentum, 0.0)), name
        assert NEGATIVES[type(method.negatives)] in negatives, name
        few = getattr(method.negatives, "per_query", None)
        assert few is None or negatives.startswith(f"{few} of"), name
        assert ("summed" in objective) == any(
            getattr(term.loss, "directions", "") == "sum" for term in method.objective.values()
        ), name
        assert (paper, status) == (explain.authors(chosen.source), chosen.status), name
        assert float(cost) == pytest.approx(encoder_passes(method), abs=0.051), name


def test_commands_of_the_page_settle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("array.npy", np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), dtype=np.uint8))
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) > 9
    for line in commands:
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[:3] == ["smallview", "pretrain", "photos/"] and "--set" in words
        named = ["--method", words[words.index("--method") + 1]] if "--method" in words else []
        settled = []
        for given in (named, words[3:]):
            code, out, err = call(shlex.join(["pretrain", "array.npy", *given, "--print-config", "--json"]))
            assert (code, err) == (0, ""), line
            settled.append(json.loads(out)["settings"])
        assert settled[0] != settled[1], f"{line} changes nothing"


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMALLVIEW_CACHE", str(tmp_path / "cache"))
    np.save("array.npy", np.random.default_rng(0).integers(0, 255, (12, 12, 12, 3), dtype=np.uint8))
    examples = [block for block in blocks("python") if "sv.pretrain(" in block]
    assert len(examples) == 2
    said: list[object] = []
    names: dict[str, Any] = {"print": said.append}
    for example in examples:
        tiny = example.replace('"photos/"', '"array.npy", quiet=True, threads=1').replace(", epochs=20", "")
        exec(re.sub(r"\)\n$", ", epochs=1)", tiny), names)
    assert f"# {said[0]}" in examples[0]
    assert (tmp_path / "runs" / "mine" / "encoder").is_dir()
    assert "array-relic_v2" in str(names["run"].path)


def test_the_quoted_preset_is_the_preset() -> None:
    quoted = next(block for block in blocks("python") if "large = View" in block)
    squeezed = "".join(inspect.getsource(combined).split())
    assert "".join(quoted.split()) in squeezed


# strategy: the target of the positive, then of ranks 0, 1, 2, ... of 40 negatives, with s = 0.2 and n = 20
STRATEGIES = {
    "1": [0.8] + [0.01] * 20 + [0.0] * 20,
    "2": [0.8] + [0.05] * 2 + [0.05 / 6] * 6 + [0.05 / 12] * 12 + [0.0] * 20,
    "3": [0.6] + [0.2 / 2**i for i in range(10)] + [0.2 / 2**9] + [0.0] * 29,
    "4": [0.5, 0.5] + [0.0] * 39,
    "5": [0.8] + [0.2 / 40] * 40,
    "6": [0.8] + [0.2 / 6] * 2 + [0.2 / 18] * 6 + [0.2 / 36] * 12 + [0.0] * 20,
}


def test_the_six_strategies_of_the_page() -> None:
    table = {cells[0]: cells[2].strip("`") for cells in rows("six strategies")}
    assert set(table) == set(STRATEGIES)
    logits = torch.linspace(3.0, -3.0, 40, dtype=torch.float64)[None]  # rank i is entry i
    for strategy, text in table.items():
        path = "method.objective.contrastive.loss.soft_targets"
        value: Any = override(preset("moco_v2"), path, text)
        soft = value.method.objective["contrastive"].loss.soft_targets
        assert isinstance(soft, (NearestSmoothing, UniformSmoothing))
        amount = resolve(soft.amount, 0.5)
        shares = torch.zeros_like(logits)
        soft.spread_(shares, logits, 40, torch.full((1,), amount, dtype=torch.float64))
        got = torch.cat([torch.tensor([1.0 - amount], dtype=torch.float64), shares[0]])
        torch.testing.assert_close(got, torch.tensor(STRATEGIES[strategy], dtype=torch.float64), atol=1e-7, rtol=0.0)


def test_the_page_names_every_value_of_the_five_choices() -> None:
    choices = PAGE.split("## The presets")[0]
    schedules, optimizers = ({cls.__name__ for cls in classes_in(slot_of(kinds))} for kinds in (Schedule, Optimizer))
    for kind in set(reachable(Preset, {})) - schedules - optimizers - {"Preset", "Method", "Heads", "Term"}:
        assert f"`{kind}`" in choices, kind
