"""Settings of any kind are taken or refused in one line, on the whole way from the command line to the first steps."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallview.cli import main
from smallview.errors import UsageError
from smallview.presets import methods
from smallview.resolving import Facts, resolve_config
from smallview.settings import dump_toml, to_tables

EXAMPLES = int(os.environ.get("SMALLVIEW_SOAK_EXAMPLES", "200"))
MANY = settings(
    max_examples=max(EXAMPLES // 2, 1),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=EXAMPLES <= 200,
)
pytestmark = pytest.mark.timeout(120 + EXAMPLES)  # seconds
FEW = settings(MANY, max_examples=max(EXAMPLES // 10, 1))


class Told(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module", autouse=True)
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an array of pictures, in which the commands run."""
    desk = tmp_path_factory.mktemp("desk")
    np.save(desk / "array.npy", np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        patch.setenv("SMALLVIEW_CACHE", str(desk / "cache"))
        yield desk


def call(tokens: list[str]) -> Told:
    """What a command says; anything but an exit comes out as it is."""
    code = 0
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(tokens)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Told(code, out.getvalue(), err.getvalue())


def check(told: Told, codes: tuple[int, ...] = (0, 2)) -> None:
    """One line with the exit code of a misuse, or none at all."""
    assert told.code in codes, told.err
    assert "Traceback" not in told.err and "unexpected" not in told.err and not Path("crash.txt").exists(), told.err
    last = told.err.splitlines()[-1:]
    if told.code:
        assert last and last[0].startswith("smallview: ") and last[0].isprintable() and len(last[0]) < 1000, told.err


def _paths(values: Any, before: str = "") -> Iterator[str]:
    """The path of every setting, tables among them."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for name, value in pairs:
        yield f"{before}{name}"
        yield from _paths(value, f"{before}{name}.")


CONFIGS = {name: to_tables(resolve_config(Facts("array.npy", 12, 8, "cpu", 1), {"method": name})[0]) for name in methods()}
PLACES = sorted((name, path) for name, tables in CONFIGS.items() for path in _paths(tables))
FLAGS = (
    "epochs",
    "minutes",
    "batch-size",
    "size",
    "seed",
    "threads",
    "save-every",
    "method",
    "encoder",
    "stem",
    "device",
    "masks",
)
TEXT = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.integers(10**300, 10**310).map(str),
    st.floats().map(repr),
    st.sampled_from(
        ["none", "true", "-0", "1e999", "1e-999", "[", "[1, 2", "{}", "Queue(size=", "Queue(1)", "Ramp(0, 1)", "9" * 5000]
    ),
)
VALUE = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.just("kind"), inner, max_size=3),
    max_leaves=5,
)
# what may be meant somewhere, at the edge of it, and costs little where it is taken
EDGE = st.sampled_from(
    [
        "0",
        "1",
        "2",
        "3",
        "-1",
        "0.5",
        "1.0",
        "1e-30",
        "1e30",
        "nan",
        "inf",
        "none",
        "true",
        "false",
        "all",
        "[]",
        "[0, 0]",
        "[1, 1]",
        "[8]",
    ]
)


@MANY
@given(
    st.sampled_from(FLAGS) | st.text(st.characters(categories=["Ll"]), min_size=1, max_size=8),
    TEXT,
    st.sampled_from(PLACES),
    TEXT,
)
def test_wild_flags_and_settings_by_path(flag: str, word: str, place: tuple[str, str], text: str) -> None:
    method, path = place
    check(call(["pretrain", "array.npy", "--print-config", "--method", method, "--set", f"{path}={text}"]))
    check(call(["pretrain", "array.npy", "--print-config", f"--{flag}={word}"]))


@MANY
@given(st.sampled_from(PLACES), VALUE)
def test_wild_values_in_a_file(place: tuple[str, str], value: Any) -> None:
    method, path = place
    tables = copy.deepcopy(CONFIGS[method])
    *parents, last = path.split(".")
    inner: Any = tables
    for name in parents:
        inner = inner[int(name) if isinstance(inner, list) else name]
    inner[int(last) if isinstance(inner, list) else last] = value
    try:
        text = dump_toml(tables)
    except UsageError:
        return  # no TOML has it
    Path("wild.toml").write_text(text, encoding="utf-8")
    check(call(["pretrain", "array.npy", "--config", "wild.toml", "--print-config"]))


@settings(MANY, max_examples=max(EXAMPLES // 4, 1))
@given(st.integers(0, 3000), st.binary(max_size=6), st.integers(0, 6))
def test_files_with_damage(at: int, put: bytes, cut: int) -> None:
    whole = dump_toml(CONFIGS["moco_v2"]).encode()
    at %= len(whole)
    Path("hurt.toml").write_bytes(whole[:at] + put + whole[at + cut :])
    check(call(["pretrain", "array.npy", "--config", "hurt.toml", "--print-config"]))


COSTLY = re.compile(r"(epochs|minutes|steps|size|threads|device|data|preset|save_every|encoder|online|weights_from)\Z")


@FEW
@given(st.sampled_from([place for place in PLACES if not COSTLY.match(place[1])]), EDGE)
def test_settings_at_an_edge_train_or_are_refused(place: tuple[str, str], text: str) -> None:
    method, path = place
    shutil.rmtree("run", ignore_errors=True)
    words = f"pretrain array.npy --method {method} --batch-size 6 --epochs 1 --threads 1 --out run"
    # 3: the pictures do not suffice, 5: nothing finite comes of it
    check(call([*words.split(), "--set", f"{path}={text}"]), (0, 2, 3, 5))
