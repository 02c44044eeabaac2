"""What plan says: recipes with a command that runs, what they cost here, and whether training will help at all."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smallview as sv
from smallview import ledger, planning, single
from smallview.cli import main
from smallview.data.sources import open_source
from smallview.errors import DataError, UsageError
from smallview.ledger import Entry
from smallview.recipes import KNOWN, PLAIN, SMALL, SMALL_FIRST, Recipe, bare, evidence, ranked
from smallview.settle import settle

pytestmark = pytest.mark.usefixtures("one_thread")


def pictures(n: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, 12, 12, 3), dtype=np.uint8)


def measured(recipe: str, linear: float, data: str = "a", minutes: float = 3.0, untrained: float = 40.0) -> Entry:
    rows = {"linear": linear, "linear untrained": untrained, "knn20": 100.0 - linear, "knn20 untrained": 30.0}
    return ledger.entry("plan", recipe, {"minutes": minutes}, data, 0, {"train_seconds": 1.0}, rows)


def test_the_best_measured_recipe_stands_first() -> None:
    entries = [measured(SMALL_FIRST.name, 50.0), measured(PLAIN.name, 60.0), measured(SMALL.name, 55.0)]
    assert [r.name for r in ranked("linear", 3.0, entries)] == [PLAIN.name, SMALL.name, SMALL_FIRST.name]
    assert [r.name for r in ranked("retrieval", 3.0, entries)] == [SMALL_FIRST.name, SMALL.name, PLAIN.name]
    assert ranked("linear", 100.0, entries) == list(KNOWN), "runs of another length do not count"
    assert ranked("linear", 0.0, entries) == list(KNOWN), "minutes that cannot be meant are refused later, by their name"


def test_only_data_that_all_were_measured_on_are_compared() -> None:
    entries = [measured(SMALL_FIRST.name, 50.0), measured(PLAIN.name, 45.0), measured(PLAIN.name, 99.0, data="easy")]
    assert ranked("linear", 3.0, entries)[0] is SMALL_FIRST
    assert ranked("linear", 3.0, entries)[-1] is SMALL, "what was not measured comes last"


def test_evidence_is_a_band_of_gains_over_the_untrained_encoder() -> None:
    entries = [
        measured(PLAIN.name, 50.0),
        measured(PLAIN.name, 61.0, data="b", minutes=5.0),
        measured(PLAIN.name, 99.0, minutes=60.0),
    ]
    found = evidence(PLAIN, "linear", 4.0, entries)
    assert found is not None and (found.low, found.high, found.runs) == (10.0, 21.0, 2)
    assert (
        found.sentence("linear")
        == "10 to 21 points of linear accuracy above the untrained encoder in 2 measured runs of 3 and 5 minutes (a, b)"
    )
    assert evidence(SMALL_FIRST, "linear", 4.0, entries) is None


def test_every_proposal_is_a_command_that_runs_as_it_was_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a b.npy", pictures())
    found = sv.plan(str(tmp_path / "a b.npy"), 0.02, threads=1)
    assert len(found.recipes) == len(KNOWN) >= 2
    for one in found.recipes:
        words = shlex.split(one.command)
        assert words[:2] == ["smallview", "pretrain"] and words[2] == str(tmp_path / "a b.npy")
        assert one.steps >= 1 and one.memory_mb > 100 and one.views == 2 * 128 * one.steps
        assert one.seen == pytest.approx(one.views / 200, abs=0.06)
        main([*words[1:], "--print-config"])
    main([*shlex.split(found.recipes[0].command)[1:], "--out", str(tmp_path / "run"), "--quiet"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["cost"]["steps"] >= 1
    # without other settings the first recipe runs, and says so, once
    capsys.readouterr()
    for wanted in (1, 0):
        main(["pretrain", str(tmp_path / "a b.npy"), "--minutes", "0.001", "--threads", "1", "--out", str(tmp_path / "bare")])
        assert capsys.readouterr().err.count(f"recipe: {found.recipes[0].name}") == wanted


def test_a_command_names_the_device_and_the_threads_that_it_was_timed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    steps(monkeypatch, 0.01)
    found = sv.plan(pictures(), 3.0, device="cpu", threads=1)
    assert all(one.command.endswith(" --device cpu --threads 1") for one in found.recipes)
    assert not any("--device" in one.command or "--threads" in one.command for one in sv.plan(pictures(), 3.0).recipes)


def test_minutes_alone_take_the_first_recipe() -> None:
    config, reasons = settle(pictures(), open_source(pictures()), {"minutes": 3.0})
    first = ranked(minutes=3.0)[0]
    assert config.preset == first.given["method"] and reasons["preset"] == f"recipe: {first.name}"
    wanted, _ = settle(pictures(), open_source(pictures()), {"minutes": 3.0, **first.given}, None, first.sets)
    assert config == wanted
    for more in ({"method": "byol"}, {"size": 8}, {"resolution": "0.5"}):
        assert not bare({"minutes": 3.0, **more}, None, None)
    assert not bare({"minutes": 3.0}, "run.toml", None) and not bare({"epochs": 3.0}, None, None)
    assert not bare({"minutes": 3.0}, None, {"optimizer.lr": 0.1}) and bare({"minutes": 3.0, "seed": 4}, None, None)


@pytest.mark.parametrize("began", KNOWN)
def test_a_run_goes_on_with_the_recipe_that_it_began_with(
    began: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLVIEW_CACHE", str(tmp_path / "cache"))
    given: dict[str, Any] = {"out": tmp_path / "run", "minutes": 0.01, "threads": 1, "quiet": True}
    with monkeypatch.context() as patch:
        patch.setattr(single, "_train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("smallview.settle.ranked", lambda **_: [began])
        with pytest.raises(KeyboardInterrupt):
            sv.pretrain(pictures(), **given)
    run = sv.pretrain(pictures(), **given)
    assert json.loads((run.path / "summary.json").read_text())["method"] == began.given["method"]
    with pytest.raises(UsageError, match="holds a run with other settings"):
        sv.pretrain(pictures(), **{**given, "minutes": 0.02})


def steps(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(planning, "seconds_of_step", lambda *_, **__: seconds)


def test_few_pictures_are_told_what_helps_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    steps(monkeypatch, 0.01)
    found = sv.plan(pictures(20), 5.0, threads=1)
    assert (
        not found.helps and "20 pictures are too few" in found.verdict and "smallview embed resnet18.a1_in1k" in found.verdict
    )
    assert found.recipes == (), "no command for what will not help"


def test_a_picture_that_is_broken_is_left_out_of_the_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setenv("SMALLVIEW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(pictures(120)):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    found = sv.plan(str(tmp_path / "photos"), 0.01, threads=1)
    assert "1 cannot be read" in found.verdict and all(one.steps >= 1 for one in found.recipes)


def test_too_little_time_is_told_with_the_time_that_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    steps(monkeypatch, 30.0)
    found = sv.plan(pictures(1000), 1.0, threads=1)
    assert not found.helps and "seen 0.5 times" in found.verdict and "about 10 minutes" in found.verdict
    steps(monkeypatch, 0.1)
    assert sv.plan(pictures(1000), 1.0, threads=1).helps


def test_what_needs_more_memory_than_there_is_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    steps(monkeypatch, 0.01)
    used = iter((9.0, 1.0, 1.0))
    monkeypatch.setattr(planning, "peak_memory", lambda device: next(used) * 2**30)
    found = sv.plan(pictures(), 5.0, memory=2.0, threads=1)
    assert [one.fits for one in found.recipes] == [True, True, False] and found.helps
    used = iter((9.0, 8.0, 7.0))
    found = sv.plan(pictures(), 5.0, memory=2.0, threads=1)
    assert not found.helps and "no recipe fits 2 GiB: the smallest takes about 7.0 GiB" in found.verdict


def test_copies_and_broken_pictures_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    steps(monkeypatch, 0.01)
    for i, pixels in enumerate(pictures(130)):
        Image.fromarray(pixels).save(tmp_path / f"{i:03d}.png")
    assert "copies" not in sv.plan(tmp_path, 5.0, threads=1).verdict
    for i in range(4):
        Image.fromarray(pictures()[i]).save(tmp_path / f"copy-{i}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "000.png").read_bytes()[:60])
    found = sv.plan(tmp_path, 5.0, threads=1)
    assert (found.pictures["looked_at"], found.pictures["copies"], found.pictures["broken"]) == (135, 4, 1)
    assert f"4 are copies of others and 1 cannot be read: smallview check {tmp_path}" in found.verdict


def test_what_one_recipe_took_of_a_gpu_is_not_counted_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    from smallview import parts
    from smallview.training.cost import forget_peak

    forgotten: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: forgotten.append(device.type))
    forget_peak(torch.device("cuda"))
    forget_peak(torch.device("cpu"))
    assert forgotten == ["cuda"]
    steps(monkeypatch, 0.01)
    monkeypatch.setattr(parts, "forget_peak", lambda device: forgotten.append("recipe"))
    sv.plan(pictures(), 5.0, threads=1)
    assert forgotten[1:] == ["recipe"] * len(KNOWN)


def test_the_verb_prints_what_python_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps(monkeypatch, 0.01)
    np.save(tmp_path / "a.npy", pictures())
    main(["plan", str(tmp_path / "a.npy"), "--minutes", "3", "--json", "--threads", "1"])
    told = json.loads(capsys.readouterr().out)
    assert set(told) >= {"verdict", "recipes"} and set(told["recipes"][0]) >= {
        "command",
        "seconds",
        "memory_mb",
        "views",
        "expected",
    }
    main(["plan", str(tmp_path / "a.npy"), "--minutes", "3", "--threads", "1", "--quiet"])
    said = capsys.readouterr()
    assert told["recipes"][0]["command"] in said.out and said.err == ""
    sides = {one["name"]: one["sides"] for one in told["recipes"]}
    assert (sides["plain"], sides["small pictures first"]) == (
        "12 px",
        "6, then 12 px",
    ) and " views of 6, then 12 px (" in said.out


@pytest.mark.parametrize(
    ("flags", "code", "wanted"),
    [
        ("", 2, "plan needs the minutes"),
        ("--minutes 0", 2, "minutes is 0"),
        ("--minutes -3", 2, "minutes is -3"),
        ("--minutes 3 --memory 0", 2, "memory is 0"),
        ("--minutes 3 --task cooking", 2, 'no task is called "cooking"; there are: few-labels, linear, retrieval'),
    ],
)
def test_bad_input_is_one_line(flags: str, code: int, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", pictures(8))
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(tmp_path / "a.npy"), *flags.split()])
    said = capsys.readouterr().err
    assert ended.value.code == code and wanted in said and len(said.strip().splitlines()) == 1


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, [measured("plain", 50.0), measured("plain", 51.0)])
    ledger.append(path, [measured("other", 52.0)])
    read = ledger.read(path)
    assert [e.rows["linear"] for e in read] == [50.0, 51.0, 52.0] and read[0] == measured("plain", 50.0)
    assert ledger.read(path, "plan") == read and ledger.read(path, "x") == []
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert len(ledger.read(path)) == 2, "a torn last line is left out"
    path.write_bytes(b'{"arm": 1}\n' + whole)
    with pytest.raises(DataError, match="line 1 of the ledger"):
        ledger.read(path)


def test_the_shipped_ledger_is_whole_and_says_nothing_of_a_person() -> None:
    for one in ledger.read():
        assert one.experiment and one.rows and one.machine and one.versions and one.cost.get("train_seconds", 0.0) > 0.0
        assert "/" not in one.machine and "/" not in one.data
    assert ledger.read("/dev/null") == []


def test_no_minutes_no_plan() -> None:
    with pytest.raises(UsageError, match="minutes is nan"):
        sv.plan(pictures(8), float("nan"))
