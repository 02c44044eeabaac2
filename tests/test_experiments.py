"""The experiments run in miniature: what they print is what they measured."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_server import Server

from smallview import ledger
from smallview.recipes import KNOWN

ROOT = Path(__file__).parent.parent


def printed(server: Server, name: str, *arguments: str) -> str:
    code, said = server.run([str(ROOT / "experiments" / f"{name}.py"), *arguments])
    assert code == 0, said
    return said


def results(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def test_fast_against_parity_views_in_miniature(server: Server) -> None:
    said = printed(server, "views_modes", "--miniature", "--seeds", "0,1")
    *pairs, summary = results(said)
    assert [pair["seed"] for pair in pairs] == [0, 1] and summary["pairs"] == 2
    for pair in pairs:
        assert 25.0 < pair["fast"] <= 100.0 and abs(pair["fast"] - pair["parity"] - pair["difference"]) < 0.011
    mean = sum(pair["difference"] for pair in pairs) / 2
    assert abs(summary["mean_difference"] - mean) < 0.011 and summary["lower_95"] <= summary["mean_difference"]


def test_label_free_scores_in_miniature(server: Server) -> None:
    said = printed(server, "label_free", "--miniature")
    lines = results(said)
    trainings, correlations = [[line for line in lines if (key in line)] for key in ("training", "score")]
    assert len(trainings) == 4 and {line["score"] for line in correlations} >= {"lidar", "rankme", "clid", "stability"}
    for line in [line for line in correlations if "none" not in line]:
        assert -1.0 <= line["low"] <= line["value"] <= line["high"] <= 1.0 and line["n"] == 4


def test_a_detector_in_miniature(server: Server) -> None:
    said = printed(server, "detection", "--miniature")
    (line,) = results(said)
    assert line["backbone"] == "untrained" and 0.0 <= line["AP50 %"] <= 100.0 and line["loss"] > 0.0


def test_starting_small_in_miniature(server: Server, tmp_path: Path) -> None:
    said = printed(server, "small_is_beautiful", "--miniature", "--seeds", "0", "--out", str(tmp_path))
    lines = results(said)
    assert len(lines) == 10 and all(34.0 < line["linear top-1 %"] <= 100.0 for line in lines)
    table = [line.split(" | ") for line in said.splitlines() if line.startswith("| ") and "schedule" not in line]
    flops = {row[0][2:]: float(row[3]) for row in table}
    assert flops["full"] == 1.0 and 0.3 < flops["half, then full; equal epochs"] < 0.8
    # what is called equal compute costs what `full` does, up to whole epochs of few steps
    assert all(abs(value - 1.0) < 0.3 for name, value in flops.items() if "equal compute" in name or "equal steps" in name)
    again = ("--supervised", "--arms", "full|half, then full; equal epochs")
    said = printed(server, "small_is_beautiful", "--miniature", "--seeds", "0", "--out", str(tmp_path), *again)
    assert "| schedule | simclr | supervised |" in said
    linear = (
        {line["arm"]: line["linear top-1 %"] for line in lines},
        {line["arm"]: line["linear top-1 %"] for line in results(said)},
    )
    half = "half, then full; equal epochs"
    lost = [f"{own[half] - own['full']:+.1f}" for own in linear]
    assert said.splitlines().count(f"| {half} | {lost[0]} | {lost[1]} |") == 1


def test_the_recipes_in_miniature(server: Server) -> None:
    said = printed(server, "recipes", "--miniature")
    *runs, order = results(said)
    assert len(runs) == len(KNOWN) == len(order["best first"]["linear"])
    best = max(runs, key=lambda run: run["linear"])
    assert next(run for run in runs if run["recipe"] == order["best first"]["linear"][0])["linear"] == best["linear"]


def test_clusters_in_miniature(server: Server) -> None:
    said = printed(server, "cluster", "--miniature")
    (line,) = results(said)
    assert (line["pictures"], line["classes"]) == (90, 3) and 2 <= line["auto"] <= 9
    # shades, which rows of unit length lose in raw pixels: each figure is of its own rows
    assert line["accuracy encoder"] > 80.0 and line["nmi encoder"] > 60.0 and line["accuracy pixels"] < 70.0
    figures = f"{line['nmi pixels']} | {line['nmi untrained']} | {line['nmi encoder']}"
    assert said.splitlines()[-1].startswith(f"| generated | 3 | {figures} |")


def test_planted_copies_in_miniature(server: Server) -> None:
    lines = results(printed(server, "duplicates", "--miniature"))
    copies, groups = [{line[key]: line for line in lines if key in line} for key in ("copy", "group")]
    assert copies["exact"]["exact %"] == copies["mirrored"]["near %"] == copies["resized"]["near %"] == 100.0
    assert all(line["pairs"] >= line["planted"] for line in groups.values()) and groups["exact"]["precision %"] == 100.0


def test_what_to_label_first_in_miniature(server: Server) -> None:
    lines = {(line["way"], line["labels"]): line for line in results(printed(server, "label_first", "--miniature"))}
    assert len(lines) == 8
    for probe in ("ridge", "means"):
        first, next_, plain = lines["labels", 50][probe], lines["labels", 100][probe], lines["select", 100][probe]
        assert first["accuracy %"] == lines["select", 50][probe]["accuracy %"] and first["above select"] == 0
        assert abs(next_["accuracy %"] - plain["accuracy %"] - next_["above select"]) < 0.011
    for (way, n), line in lines.items():
        assert line["classes seen"] <= 6
        for probe in ("ridge", "means"):
            apart = line[probe]["accuracy %"] - lines["random", n][probe]["accuracy %"]
            assert abs(apart - line[probe]["above random"]) < 0.011 and (way != "random" or apart == 0)


def test_the_ladder_in_miniature(server: Server, tmp_path: Path) -> None:
    asked = ("--miniature", "--steps", "patches alone|patches|four views", "--out", str(tmp_path))
    lines = {line["step"]: line for line in results(printed(server, "records/ladder", *asked))}
    assert set(lines) == {"patches alone", "patches", "four views"}
    assert lines["patches alone"]["linear"] == lines["patches alone"]["linear untrained"]  # nothing is trained
    assert lines["patches"]["steps"] > 0 and lines["patches"]["linear untrained"] != lines["patches alone"]["linear"]
    assert results(printed(server, "records/ladder", *asked)) == []  # all is there


def test_the_ladder_of_a_gpu_runs_in_miniature_and_says_what_it_expects(server: Server, tmp_path: Path) -> None:
    track = ("--track", "cifar10_resnet18")
    asked = ("--miniature", "--steps", "resnet18|resnet18, four views|resnet18, Muon", "--out", str(tmp_path))
    lines = results(printed(server, "records/ladder", *track, *asked))
    assert [line["step"] for line in lines] == ["resnet18", "resnet18, four views", "resnet18, Muon"]
    assert "expected to see 176 epochs in 5 min" in printed(server, "records/ladder", *track, "--list")
    code, said = server.run([str(ROOT / "experiments" / "records" / "ladder.py"), *track])
    assert torch.cuda.is_available() or (code == 1 and "torch sees none" in said)


def test_the_pages_of_results_are_what_the_ledger_says(server: Server) -> None:
    assert printed(server, "results", "--check") == "", "python experiments/results.py writes them anew"
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"`python experiments/(\S+)\.py (.+?)`", text))
    assert len(commands) >= 5
    for script, words in sorted(commands):  # nothing is trained: they are told to say what they would do
        told = {"records/ladder": "--list", "small_is_beautiful": "--table"}.get(script, "--commands")
        assert printed(server, script, *shlex.split(words), told)


def test_a_ladder_tells_gains_seed_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "records"))
    table = importlib.import_module("records_text")

    def entry(arm: str, seed: int, linear: float) -> ledger.Entry:
        cost = {"train_seconds": 300.0, "epochs": 9.0, "flops": 5e12}
        rows = {"linear": linear, "knn20": linear - 5.0, "linear untrained": 40.0 + seed, "knn20 untrained": 35.0}
        return ledger.Entry("record", arm, {"minutes": 5.0}, "cifar10", seed, "cpu", "m", {}, cost, rows)

    runs = [entry("plain", 0, 60.0), entry("plain", 1, 62.0), entry("small first", 1, 65.0), entry("small first", 0, 61.0)]
    told = table.ladder("cifar10", 5.0, runs)
    assert "| 61.00 ± 1.41 | 56.00 ± 1.41 | - | 300 | 9.0 | 5 | 2 |" in told
    assert "| 63.00 ± 2.83 | 58.00 ± 2.83 | +1.0, +3.0 | 300 | 9.0 | 5 | 2 |" in told
    assert "| floor: untrained | dense_small as it begins | 40.50 | 35.00 | - |" in told
