from __future__ import annotations

import math
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallview.errors import UsageError
from smallview.schedules import Cosine, Schedule, WarmupCosine
from smallview.settings import apply_tables, diff, dump_toml, from_tables, load_toml, override, to_tables, to_toml


@dataclass(frozen=True)
class InBatch:
    per_query: int | None = None


@dataclass(frozen=True)
class Queue:
    size: int
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}; wanted at least 1")


@dataclass(frozen=True)
class Nested:
    first: InBatch | Queue
    rest: tuple[InBatch | Queue, ...] = ()


@dataclass(frozen=True)
class View:
    size: int = 32
    scale: tuple[float, float] = (0.2, 1.0)
    seen_by: Literal["both", "online", "target"] = "both"
    mask: bool = False


@dataclass(frozen=True)
class Term:
    weight: float
    loss: InBatch | Queue = field(default_factory=InBatch)


@dataclass(frozen=True)
class Method:
    views: tuple[View, ...] = (View(), View())
    negatives: InBatch | Queue | Nested | None = field(default_factory=InBatch)
    objective: dict[str, Term] = field(default_factory=lambda: {"nce": Term(1.0)})


@dataclass(frozen=True)
class Optimizer:
    lr: float | Schedule = 0.3
    nesterov: bool = False
    name: str = "sgd"


@dataclass(frozen=True)
class Preset:
    method: Method = field(default_factory=Method)
    optimizer: Optimizer = field(default_factory=Optimizer)
    epochs: int = 100
    minutes: float | None = None
    note: str | None = None
    layers: tuple[int, ...] = (1, 2)


BASE = Preset()
RICH = Preset(
    Method((View(8, (0.1, 0.2), "online", True),), Nested(Queue(4), (InBatch(2), Queue(8, 0.5))), {"a b": Term(2.0, Queue(3))}),
    Optimizer(Cosine(1e-5, 1e300), True, 'qu"o\\te\n\x00é'),
    epochs=0,
    minutes=math.inf,
)


def get(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else value[int(part)] if part.isdigit() else getattr(value, part)
    return value


@pytest.mark.parametrize(
    ("path", "text", "wanted"),
    [
        ("optimizer.lr", "0.5", 0.5),
        ("optimizer.lr", "1", 1.0),
        ("optimizer.lr", " 1e-3 ", 0.001),
        ("optimizer.lr", "Cosine(0.1, end=0)", Cosine(0.1, 0.0)),
        ("optimizer.lr", "WarmupCosine(peak=0.4)", WarmupCosine(0.4)),
        ("optimizer.nesterov", "True", True),
        ("optimizer.name", "none", "none"),
        ("optimizer.name", " a (b", " a (b"),
        ("epochs", "7", 7),
        ("minutes", "none", None),
        ("minutes", "2.5", 2.5),
        ("note", "5", "5"),
        ("layers", "(3, 4, 5)", (3, 4, 5)),
        ("layers", "3,4", (3, 4)),
        ("layers.1", "9", 9),
        ("method.views.0.seen_by", "online", "online"),
        ("method.views.1.scale", "[0.5, 1]", (0.5, 1.0)),
        ("method.views", "(View(seen_by=online, scale=(0.1, 0.3)), View(16))", (View(32, (0.1, 0.3), "online"), View(16))),
        ("method.negatives", "Queue(size=4096)", Queue(4096)),
        ("method.negatives", "Queue(4, temperature=+.5)", Queue(4, 0.5)),
        ("method.negatives", "InBatch", InBatch()),
        ("method.negatives", "none", None),
        ("method.negatives", "Nested(Queue(3), [InBatch(None), Queue(2)])", Nested(Queue(3), (InBatch(), Queue(2)))),
        ("method.negatives.per_query", "16", 16),
        ("method.objective.nce.weight", "2", 2.0),
        ("method.objective.relic", "Term(0.5)", Term(0.5)),
    ],
)
def test_text_is_read_as_the_type_of_its_field(path: str, text: str, wanted: object) -> None:
    changed = override(BASE, path, text)
    assert get(changed, path) == wanted
    assert type(get(changed, path)) is type(wanted)
    assert Preset() == BASE


def test_values_from_python() -> None:
    assert override(BASE, "method.negatives", Queue(5)).method.negatives == Queue(5)
    assert override(BASE, "optimizer.lr", 1).optimizer.lr == 1.0
    assert override(BASE, "optimizer", {"lr": 0.1}).optimizer == Optimizer(lr=0.1)
    assert override(BASE, "minutes", None).minutes is None
    gone = override(override(BASE, "method.objective.x", Term(1.0)), "method.objective.nce", "none")
    assert list(gone.method.objective) == ["x"]


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("epoch", "1", 'unknown key "epoch"; did you mean "epochs"?'),
        ("optimizer.lrr", "1", 'unknown key "lrr" in optimizer; did you mean "lr"?'),
        ("epochs", "0.5", 'epochs: received "0.5", wanted a whole number, such as 100'),
        ("epochs", "none", 'epochs: received "none", wanted a whole number, such as 100'),
        ("optimizer.lr", "fast", 'optimizer.lr: received "fast", wanted a number or Constant(...) or Cosine(...)'),
        ("optimizer.lr", "nan", "optimizer.lr: received nan, wanted a number"),
        ("optimizer.nesterov", "1", 'optimizer.nesterov: received "1", wanted true or false, such as true'),
        ("method.views.2.size", "1", 'method.views.2.size: "2" is no place in method.views; it has 2 entries'),
        ("method.views.0.seen_by", "all", 'received "all", wanted both or online or target, such as both'),
        ("method.views.0.scale", "(1,)", "method.views.0.scale: received a list of 1, wanted a list of 2"),
        ("method.views.0.scale", "(1, x)", 'method.views.0.scale.1: received "x", wanted a number'),
        ("method.negatives", "Quee(size=1)", 'method.negatives: unknown kind "Quee"; did you mean "Queue"?'),
        ("method.negatives", "View(size=1)", 'method.negatives: unknown kind "View"; there are: InBatch, Nested, Queue'),
        ("method.negatives", "Queue()", "method.negatives: Queue needs size; add size"),
        ("method.negatives", "Queue(1, size=2)", "method.negatives: Queue received size twice; give it once"),
        ("method.negatives", "Queue(1, 2, 3)", "method.negatives: Queue takes 2 values (size, temperature), received 3"),
        ("method.negatives", "Queue(size=0)", "method.negatives: size is 0; wanted at least 1"),
        ("method.negatives", "Queue(**{'size': 3})", "method.negatives: received "),
        ("method.negatives.size", "3", 'unknown key "size" in method.negatives'),
        ("method.objective.nec.weight", "1", 'unknown key "nec" in method.objective; did you mean "nce"?'),
        ("method.objective.nec", "none", 'unknown key "nec" in method.objective; did you mean "nce"?'),
        ("epochs.x", "1", "epochs.x: epochs is 100 and has no settings of its own; set epochs itself"),
        ("epochs", "9" * 6000, "epochs: received "),
        ("epochs", str(2**63), "epochs: received "),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(path: str, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        override(BASE, path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch planted')",
        'exec(\'open("planted", "w")\')',
        "Queue(size=__import__('os').getpid())",
        "Queue.__init__.__globals__",
        "[c for c in ().__class__.__bases__]",
        "(lambda: 1)()",
        "Queue(size=1) if True else 0",
        "f'{1}'",
        "2**63",
        "print",
    ],
)
def test_nothing_is_ever_evaluated(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        override(BASE, "method.negatives", text)
    assert not list(tmp_path.iterdir())


WILD_TEXT = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.integers(min_value=10**300, max_value=10**310).map(str),
    st.floats().map(repr),
    st.sampled_from(
        ["nan", "-inf", "none", "(((", "-" * 3000, "[" * 200, "Queue(size=", "Queue(size=1e999)", "'\\d'", "1_0", "9" * 9000]
    ),
    st.builds("Queue(size={})".format, st.text(alphabet="0123456789-+.()'[]{}eE,x", max_size=12)),
)
WILD_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**400, 10**401)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.just("kind"), inner, max_size=3),
    max_leaves=6,
)
SCALAR_PATHS = [
    "epochs",
    "minutes",
    "note",
    "layers",
    "layers.0",
    "optimizer",
    "optimizer.lr",
    "optimizer.nesterov",
    "x.y",
    ".",
]
METHOD_PATHS = ["", ".views", ".views.0.scale", ".negatives", ".objective", ".objective.nce", ".objective.new"]
PATHS = st.sampled_from([*SCALAR_PATHS, *(f"method{path}" for path in METHOD_PATHS)])
MANY = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))


@MANY
@given(PATHS | st.text(max_size=12), WILD_TEXT | WILD_VALUE)
def test_wild_overrides_give_a_value_or_a_usage_error(path: str, new: object) -> None:
    try:
        changed = override(BASE, path, new)
    except UsageError as error:
        assert "\n" not in str(error)
        assert str(error).isprintable()
    else:
        assert isinstance(changed, Preset)
        assert isinstance(changed.epochs, int)
        assert isinstance(changed.method.views, tuple)
        assert all(isinstance(term, Term) for term in changed.method.objective.values())


def _graft(path: str, value: object) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    inner = tables
    *parents, last = path.split(".")
    for part in parents:
        inner = inner.setdefault(part, {})
    inner[last] = value
    return tables


@MANY
@given(PATHS, WILD_VALUE)
def test_wild_tables_give_a_value_or_a_usage_error(path: str, new: object) -> None:
    try:
        changed = apply_tables(BASE, _graft(path, new))
    except UsageError as error:
        assert str(error).isprintable()
    else:
        assert isinstance(changed.optimizer, Optimizer)


def test_tables_and_toml_give_back_the_value() -> None:
    for value in (BASE, RICH):
        tables = tomllib.loads(to_toml(value))
        assert tables == to_tables(value)
        assert from_tables(Preset, tables) == value
        for below in (BASE, RICH):
            assert apply_tables(below, tables | {"method": tables["method"]}).optimizer == value.optimizer
    assert to_tables(RICH)["method"]["negatives"]["kind"] == "Nested"
    assert "kind" not in to_tables(RICH)["method"]["objective"]["a b"]
    assert apply_tables(RICH, to_tables(BASE)).minutes is None


SCHEDULES = st.builds(Cosine, st.floats(allow_nan=False), st.floats(allow_nan=False))
NEGATIVES = st.builds(InBatch, st.none() | st.integers(0, 99)) | st.builds(Queue, st.integers(1, 2**62))
PRESETS = st.builds(
    Preset,
    st.builds(
        Method,
        st.lists(st.builds(View, st.integers(0, 99), seen_by=st.sampled_from(["both", "online"])), max_size=3).map(tuple),
        NEGATIVES | st.builds(Nested, NEGATIVES, st.lists(NEGATIVES, max_size=2).map(tuple)) | st.none(),
        st.dictionaries(
            st.text(st.characters(codec="utf-8"), max_size=5), st.builds(Term, st.floats(0, 1), NEGATIVES), max_size=2
        ),
    ),
    st.builds(Optimizer, st.floats(allow_nan=False) | SCHEDULES, st.booleans(), st.text(st.characters(codec="utf-8"))),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(PRESETS)
def test_any_value_round_trips(value: Preset) -> None:
    assert from_tables(Preset, tomllib.loads(to_toml(value))) == value


TOML_SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
)
TOML_KEYS = st.text(st.characters(codec="utf-8"), max_size=6)
TOML = st.dictionaries(
    TOML_KEYS,
    st.recursive(
        TOML_SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TOML_KEYS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(TOML)
def test_what_is_written_is_read_back(tables: dict[str, Any]) -> None:
    again = tomllib.loads(dump_toml(tables))
    assert again == tables
    assert repr(again) != "" and _types(again) == _types(tables)


def _types(value: object) -> object:
    if isinstance(value, dict):
        return {key: _types(item) for key, item in value.items()}
    return [_types(item) for item in value] if isinstance(value, list) else type(value)


def test_the_writer_refuses_what_toml_cannot_hold() -> None:
    assert dump_toml({"a": None, "b": {"c": None}}) == "[b]\n"
    assert math.isnan(tomllib.loads(dump_toml({"x": math.nan}))["x"])
    with pytest.raises(UsageError, match="not valid Unicode"):
        dump_toml({"name": "\udcff"})
    with pytest.raises(TypeError):
        dump_toml({"name": b"x"})


def test_partial_tables_and_kinds() -> None:
    over = apply_tables(BASE, {"method": {"negatives": {"kind": "Queue", "size": 5}, "objective": {"nce": {"weight": 3}}}})
    assert over.method.negatives == Queue(5)
    assert over.method.objective == {"nce": Term(3.0)}
    assert apply_tables(over, {"method": {"negatives": {"temperature": 0.5}}}).method.negatives == Queue(5, 0.5)
    assert apply_tables(over, {"method": {"negatives": "InBatch"}}).method.negatives == InBatch()
    assert apply_tables(BASE, {"method": {"views": [{"size": 8}]}}).method.views == (View(8),)
    with pytest.raises(UsageError, match=r"run\.toml: unknown key \"epoch\"; did you mean \"epochs\"\?"):
        apply_tables(BASE, {"epoch": 1}, source="run.toml")
    with pytest.raises(UsageError, match="without a kind, wanted one of InBatch, Queue, Nested"):
        apply_tables(override(BASE, "method.negatives", "none"), {"method": {"negatives": {"size": 3}}})
    with pytest.raises(UsageError, match='epochs: received "3", wanted a whole number'):
        apply_tables(BASE, {"epochs": "3"})
    with pytest.raises(UsageError, match="epochs: received True"):
        apply_tables(BASE, {"epochs": True})


def test_diff() -> None:
    changed = override(override(BASE, "optimizer.lr", "0.5"), "method.negatives", "Queue(7)")
    assert diff(to_tables(BASE), to_tables(changed)) == [
        'method.negatives.kind: "InBatch" -> "Queue"',
        "method.negatives.per_query: none -> absent",
        "optimizer.lr: 0.3 -> 0.5",
        "method.negatives.size: absent -> 7",
        "method.negatives.temperature: absent -> 0.1",
    ]
    assert diff(to_tables(BASE), to_tables(override(BASE, "method.views.1.size", "8"))) == ["method.views.1.size: 32 -> 8"]
    assert diff(to_tables(RICH), to_tables(RICH)) == []


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a = 1\nb = \n", "line 2: Invalid value; TOML was wanted"),
        (b"a = 1\na = 2\n", "line 2: Cannot overwrite a value"),
        (b"[a\n", "line 1: "),
        (b'a = """x\n\n', "line 3: Unterminated string"),
        (b"a = 1\nb = '\xff'\n", "line 2: not UTF-8 text"),
        (b"a = " + b"9" * 5000, "digit"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"#" * 1_000_001, "larger than 1 MB"),
    ],
)
def test_a_bad_file_is_told_in_one_line(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(raw)
    with pytest.raises(UsageError) as caught:
        load_toml(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_toml(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="Is a directory"):
        load_toml(tmp_path)
    path = tmp_path / "good.toml"
    path.write_text(to_toml(RICH), encoding="utf-8")
    assert apply_tables(BASE, load_toml(path)).optimizer == RICH.optimizer


def test_no_torch() -> None:
    code = "import sys, smallview.settings; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# mine\nepochs = 3\nepoch = 1\n", 'line 3: unknown key "epoch"; did you mean "epochs"?'),
        ("[optimizer]\n\nlr = 'fast' # how\n", 'line 3: optimizer.lr: received "fast"'),
        ("optimizer.lr = true\n", "line 1: optimizer.lr: received True"),
        ("[[method.views]]\nsize = 3\n[[method.views]]\nsize = 3.5\n", "line 4: method.views.1.size: received 3.5"),
        ("[method]\nnegatives = {kind = 'Queue', size = 0}\n", "line 2: method.negatives: size is 0; wanted at least 1"),
        ("[method.negatives]\nkind = 'Quee'\n", 'line 1: method.negatives: unknown kind "Quee"'),
        ('[method.objective."a b"]\nweight = "x"\n', "line 2: method.objective.a b.weight: received"),
    ],
)
def test_a_refused_setting_is_told_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        apply_tables(BASE, load_toml(path), source=path)
    assert str(caught.value).startswith(f"{path} {message}")
