"""A run goes on with the settings that it began with: every one that decides the result is refused when it differs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smallview as sv
from smallview import config as configuration
from smallview.config import RunConfig
from smallview.continuing import going_on
from smallview.errors import StoppedError, UsageError
from smallview.presets import methods
from smallview.resolving import Facts, resolve_config
from smallview.settings import dump_toml, from_tables, load_toml, to_tables

pytestmark = pytest.mark.usefixtures("apart")
StopAfter = Callable[[pytest.MonkeyPatch, int], None]
# tried in turn in the place of a value until one of them is a setting too
OTHERS: tuple[Any, ...] = (
    *(0.25, 0.3, 0.75, 1.5, 2, 3, 7, 64, 128, True, False, [7], [0.3, 0.9], [0.5, 1.5], "none"),
    *("channels_last", "channels_first", "bfloat16", "float32", "small", "standard", "graph", "parity", "fast", "raw", "jpeg"),
    *(
        "resnet18",
        "byol",
        "online",
        "both",
        "target",
        "first",
        "cross",
        "all",
        "mean",
        "sum",
        "copy",
        "own",
        "spectral_residual",
        "noise",
    ),
    *("x", 1.0, 0.0, 0, 1, "auto"),
    *("new", "fixed", {"pictures": 5}, [{"size": 16, "epochs": 1.0}]),
)


def begun(method: str) -> RunConfig:
    """The settings of a run of a method as run.toml records them."""
    config, _ = resolve_config(Facts("photos", 512, 16, "cpu", 1), {"method": method})
    return replace(config, stem="standard", layout="channels_first", dtype="float32", pack="raw", steps=400)


def leaves(tables: Any, before: str = "") -> Iterator[str]:
    pairs = tables.items() if isinstance(tables, dict) else enumerate(tables) if isinstance(tables, list) else ()
    for name, value in pairs:
        if isinstance(value, (dict, list)) and value and not all(isinstance(item, (int, float)) for item in value):
            yield from leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


# what was a setting in a place of this name stands first for the next method's
TAKEN: dict[str, Any] = {}


def altered(stored: RunConfig, path: str) -> Iterator[RunConfig]:
    """The settings with others in one place, as far as those are settings at all."""
    tables: Any = to_tables(stored)
    *parents, last = path.split(".")
    inner = tables
    for name in parents:
        inner = inner[int(name) if isinstance(inner, list) else name]
    for other in (*((TAKEN[last],) if last in TAKEN else ()), *OTHERS):
        inner[int(last) if isinstance(inner, list) else last] = other
        try:
            changed = from_tables(RunConfig, copy.deepcopy(tables))
        except UsageError:
            continue
        if changed != stored:
            TAKEN[last] = other
            yield changed


@pytest.mark.parametrize("method", methods())
def test_every_setting_of_the_mathematics_is_refused_when_changed(method: str, tmp_path: Path) -> None:
    stored = begun(method)
    assert going_on(stored, stored, set(), tmp_path, lambda _: None) == stored
    seen, never = set(), []
    for path in leaves(to_tables(stored)):
        name = path.split(".")[0]
        if name in ("data", *configuration.FREE) or path.endswith("kind"):
            continue
        wanted = next(altered(stored, path), None)
        if wanted is None:
            never.append(path)
            continue
        seen.add(name)
        with pytest.raises(UsageError, match=name):
            going_on(wanted, stored, {name}, tmp_path, lambda _: None)
    # epochs are not there beside minutes; the rest, and the names of views' backgrounds, must have been changed
    every = {field.name for field in fields(RunConfig)} - {"data", *configuration.FREE}
    assert every - seen <= {"epochs", "minutes"}, f"nothing else could be put there: {never}"
    assert len(never) <= 8, never


def test_what_is_free_may_differ(tmp_path: Path) -> None:
    stored = begun("simclr")
    places = {"device", "threads", "memory", "save_every", "watch_every", "stop_on_collapse", "online", "tensorboard"}
    assert set(configuration.FREE) == places | {"probe", "steps"}  # these two are fixed by the first start
    for name, other in {
        "save_every": 7.0,
        "device": "cpu",
        "memory": "recompute",
        "watch_every": 5,
        "stop_on_collapse": True,
    }.items():
        wanted = replace(stored, **{name: other})
        assert getattr(going_on(wanted, stored, {name}, tmp_path, lambda _: None), name) == other
    said: list[str] = []
    assert going_on(replace(stored, threads=7), stored, {"threads"}, tmp_path, said.append).threads == stored.threads
    assert "going on with 1 threads as the run began, not 7" in said[0]


def test_a_length_in_other_terms_is_refused(tmp_path: Path) -> None:
    stored = begun("simclr")
    for wanted in (replace(stored, epochs=7.0), replace(stored, epochs=None, minutes=7.0)):
        with pytest.raises(UsageError, match=r"epochs: 100\.0 ->"):
            going_on(wanted, stored, {"epochs", "minutes"}, tmp_path, lambda _: None)


def test_another_version_is_told_and_goes_on(
    tmp_path: Path, stop_after: StopAfter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (32, 16, 16, 3), dtype=np.uint8)
    settings: dict[str, Any] = {"encoder": "dense_small:8-16", "batch_size": 16, "epochs": 2, "threads": 1}
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_after(patch, 2)
        sv.pretrain(pictures, out=tmp_path / "run", quiet=True, **settings)
    tables = load_toml(tmp_path / "run" / "run.toml")
    tables["recorded"]["torch"] = "1.0.0"
    (tmp_path / "run" / "run.toml").write_text(dump_toml(tables))
    sv.pretrain(pictures, out=tmp_path / "run", **settings)
    said = capsys.readouterr().err
    assert "the run began with torch 1.0.0 and goes on with" in said and "rounding may differ" in said
    assert "resuming at step 2 of 4" in said
