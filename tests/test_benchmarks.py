"""The benchmarks run in miniature, tell what they measured, and say which peers are missing."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = ("--rounds", "1", "--seconds", "0.01")
PEERS = ("lightly", "kornia", "albumentations", "ffcv", "stable_pretraining")
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Load]:
    """Imports a script of benchmarks/ where no peer is installed and no real picture is at hand."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delenv("SMALLVIEW_DATA", raising=False)
    monkeypatch.setenv("SMALLVIEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SMALLVIEW_MALLOC", "off")  # else the rest of the tests would keep their memory too
    for name in PEERS:
        monkeypatch.setitem(sys.modules, name, None)
    threads, before = torch.get_num_threads(), set(sys.modules)
    yield importlib.import_module
    torch.set_num_threads(threads)
    own = {path.stem for path in FOLDER.glob("*.py")}
    for name in (set(sys.modules) - before) & own:
        del sys.modules[name]


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in found["arms"]}


@pytest.mark.parametrize(
    ("script", "arguments", "arms", "missing"),
    [
        (
            "views_small",
            ("--pictures", 16, "--batch-size", 8),
            {"ours", "torchvision PIL"},
            {"lightly", "kornia", "albumentations"},
        ),
        ("views_large", ("--pictures", 2, "--batch-size", 2), {"ours", "torchvision PIL"}, {"albumentations"}),
        ("jpeg", ("--pictures", 2, "--batch-size", 2), {"ours", "torchvision PIL"}, {"ffcv", "ffcv-crop"}),
        ("packed", ("--pictures", 2, "--batch-size", 2), {"ours, raw pack", "ours, jpeg pack"}, set()),
    ],
)
def test_arms_take_turns_and_missing_peers_are_said(
    load: Load,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    script: str,
    arguments: tuple[object, ...],
    arms: set[str],
    missing: set[str],
) -> None:
    path = tmp_path / "found.json"
    found = load(script).main([*TINY, *map(str, arguments), "--json", str(path)])
    assert arms <= set(rows(found))
    for row in found["arms"]:
        assert row["median"] > 0 and len(row["speeds"]) == 1
    assert {line.split(":")[0] for line in found["left_out"]} == missing
    printed = capsys.readouterr().out
    assert all(f"left out: {name}" in printed for name in missing)
    stored = json.loads(path.read_text())
    assert rows(stored).keys() == rows(found).keys()
    assert stored["machine"]["date"] and stored["machine"]["versions"]["torch"]


def test_the_arms_make_alike_views(load: Load) -> None:
    pictures = load("photos").make_natural(128, 32, 32)
    pipelines, arms = load("pipelines"), load("arms")
    from smallview.data.packing import open_pack
    from smallview.data.sources import open_source

    pack = open_pack(open_source(pictures), short_side=None)
    mine = arms.look(pipelines.ours(pack, 32, 64, blur=False).sample())
    theirs = arms.look(pipelines.torchvision_pil(pictures, 32, 64, blur=False, goal=(1, 1)).sample())
    for name, far in (("mean", 0.15), ("deviation", 0.1), ("roughness", 0.02)):
        assert abs(mine[name] - theirs[name]) < far, (name, mine, theirs)


def test_speed_is_images_over_time_and_ratios_are_paired(load: Load) -> None:
    arms = load("arms")
    now = 0.0

    def arm(name: str, costs: list[float], **more: Any) -> Any:
        left = [0.0, 0.0, *costs]  # two calls are warm-up

        def call() -> int:
            nonlocal now
            now += left.pop(0)
            return 6

        return arms.Arm(name, call, **more)

    mine, theirs = arm("ours", [1.0, 2.0, 1.0], ours=True), arm("peer", [2.0, 2.0, 3.0])
    found = {row["arm"]: row for row in arms.take_turns([mine, theirs], 3, 0.5, lambda: now)}
    assert found["ours"]["speeds"] == [6, 3, 6] and found["peer"]["speeds"] == [3, 3, 2]
    assert found["peer"]["ours_over_it"]["ours"] == {"median": 2, "min": 1, "max": 3}


def test_an_unknown_arm_is_refused(load: Load) -> None:
    with pytest.raises(SystemExit, match="no arm is called nobody; there are ours"):
        load("views_small").main([*TINY, "--pictures", "8", "--arm", "nobody"])


def test_the_step_and_its_limit(load: Load, tmp_path: Path) -> None:
    step = load("step")
    found = step.main(["--encoder", "dense_small", "--size", "8", "--batch-size", "4", "--threads", "1", *TINY])
    (row,) = found["rows"]
    assert row["ratio"]["median"] == row["real"][0] / row["resident"][0]


def test_embedding_beside_the_bare_pass(load: Load) -> None:
    small = ["--encoder", "patches:8-12", "--size", "12", "--pictures", "300", "--rounds", "2"]
    found = load("embedding").main(small)
    assert found["from"] <= found["share_of_bare_speed"] <= found["to"] and found["bare_pictures_a_second"] > 0


def test_loops_of_the_peers_script(load: Load) -> None:
    peers = load("peers")
    for arm in ("ours", "resident"):
        assert peers.build_loop(arm, "dense_small", 4, 16, 1, "auto")(1) > 0
    for arm in ("lightly", "stable-pretraining-2-workers"):
        with pytest.raises(ImportError):
            peers.build_loop(arm, "dense_small", 4, 16, 1, "auto")


@pytest.mark.slow
def test_peers_take_turns_in_processes_of_their_own(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    small = ("--batch-size", "4", "--pictures", "16", "--threads", "1", "--arm", "ours", "--arm", "resident")
    load("peers").main(["--encoder", "dense_small", *TINY, *small, "--json", str(path)])
    (found,) = json.loads(path.read_text())["encoders"]
    assert [row["arm"] for row in found["arms"]] == ["ours", "resident"]


def test_gpu_script_in_miniature(load: Load) -> None:
    small = ("--size", "8", "--batch-size", "4", "--pictures", "8", "--rounds", "1", "--seconds", "0.05")
    found = load("gpu").main(["--device", "cpu", "--encoder", "dense_small", *small])
    (row,) = found["rows"]
    assert 0 < row["share"] < 1 and np.isfinite(row["loop"]) and row["views_a_second"] > 0


def test_ways_of_calling_in_miniature(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passes = load("gpu_passes")
    path = tmp_path / "found.json"
    ways = ("eager, float32", "compile, bfloat16", "recompute, bfloat16")
    small = ("--device", "cpu", "--small", "--json", str(path))
    found = passes.main([*small, *(word for way in ways for word in ("--way", way))])
    assert [row["arm"] for row in found["rows"]] == list(ways)
    for row in found["rows"]:
        assert row["views_a_second"] > 0 and row["first_s"] > 0
        assert row["over_first"]["median"] == row["speeds"][0] / found["rows"][0]["speeds"][0]
        assert (row["compiling_s"] is not None) == row["arm"].startswith("compile")
    assert json.loads(path.read_text())["rows"] == found["rows"]
    late = passes.main([*small, "--budget", "0"])
    assert late["rows"][0]["left_out"] == "left out: 0 s were over" and "0 s were over" in capsys.readouterr().out


def test_pictures_out_of_order_and_losses_that_differ_are_told(load: Load) -> None:
    compare = load("gpu_resume").compare
    whole = {step: (f"pictures {step}", f"loss {step}") for step in range(1, 9)}
    killed, resumed = ({step: whole[step] for step in steps} for steps in (range(1, 6), range(4, 9)))
    told = compare(whole, killed, resumed)
    assert told["every_step_served"] and (told["killed_after"], told["resumed_at"], told["steps"]) == (5, 4, 8)
    assert told["same_pictures"] == told["same_losses"] == told["compared"] == 10
    shifted = {step: (whole[step - 1][0], whole[step][1]) for step in resumed}
    assert compare(whole, killed, shifted)["same_pictures"] == 5
    rounded = {step: (whole[step][0], "loss") for step in resumed}
    told = compare(whole, killed, rounded)
    assert (told["same_pictures"], told["same_losses"]) == (10, 5)
    del resumed[8]
    assert not compare(whole, killed, resumed)["every_step_served"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_serves_the_same_pictures(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    told = load("gpu_resume").main(["--device", "cpu", "--small", "--json", str(path)])
    assert told["killed_after"] == 5 and told["compared"] >= 8 and told["every_step_served"] and told["same_weights"]
    assert told["same_pictures"] == told["same_losses"] == told["compared"]
    assert json.loads(path.read_text())["resumed_at"] == told["resumed_at"] > 1


def test_search_is_timed_among_made_embeddings(load: Load, tmp_path: Path) -> None:
    found = load("search").main(["--rows", "300", "--features", "8", "--threads", "1", "--folder", str(tmp_path)])
    assert (found["rows"], found["features"]) == (300, 8) and found["peak MiB"] > 50
    assert not list(tmp_path.glob("tmp*")), "what was written is gone"
