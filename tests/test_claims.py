"""The claims of the papers: every arm of every scale is a run that could be made, and each claim runs in miniature."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smallview import ledger
from smallview.data.sources import open_source
from smallview.settle import settle

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "experiments" / "claims"))

from claims_text import NAMES, claims  # noqa: E402
from grid import SCALES, Arm, Claim, Pictures, Scale, run_all, table  # noqa: E402

CLAIMS = {claim.experiment: claim for claim in claims()}


def test_every_claim_has_a_file_and_is_in_the_page() -> None:
    files = {path.stem for path in (ROOT / "experiments" / "claims").glob("*.py")} - {"grid", "claims_text"}
    assert files == set(CLAIMS) == set(NAMES)
    for claim in CLAIMS.values():
        assert claim.against in (names := [arm.name for arm in claim.arms(SCALES["cpu"])]) and set(claim.telling) <= set(names)
        assert claim.found or not ledger.read(experiment=claim.experiment), f"{claim.experiment} was measured and says nothing"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CLAIMS)
def test_every_arm_is_a_run_that_could_be_made_and_another_than_the_others(name: str, scale: str) -> None:
    claim = CLAIMS[name]
    own = claim.settings(SCALES[scale])
    source = open_source(np.zeros((300, 32, 32, 3), np.uint8))
    arms = claim.arms(own)
    told = set()
    for arm in arms:
        given = {"method": arm.method, "seed": 0, **own.given(), **arm.given}
        masks = given.pop("masks", None)
        config, _ = settle(source, source, {k: v for k, v in given.items() if v is not None}, None, arm.sets)
        told.add(repr((config, masks)))
        assert arm.command(own, "photos/", 0).startswith("smallview pretrain photos/ --method ")
    assert len(told) == len(arms) == len({arm.name for arm in arms})
    assert claim.against in {arm.name for arm in arms} or scale == "miniature"


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_in_miniature(name: str, tmp_path: Path) -> None:
    """The first two arms of each, in one process each: its judge, its table and what stands below it."""
    claim = CLAIMS[name]
    scale = claim.settings(SCALES["miniature"])
    arms = claim.arms(scale)[:2]
    path = tmp_path / "ledger.jsonl"
    assert run_all(claim, scale, arms, (0,), tmp_path, path, until=float("inf"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["arm"] for line in lines] == [arm.name for arm in arms]
    for line in lines:
        assert line["experiment"] == name and line["scale"] == "miniature" and set(claim.columns.values()) <= set(line["rows"])
        assert all(np.isfinite(value) for value in line["rows"].values()) and line["cost"]["flops"] > 0
    told = table(claim, ledger.read(path))
    assert all(f"| {arm.name} |" in told for arm in arms) and "floor: pixels" in told
    before = path.read_bytes()
    assert run_all(claim, scale, arms, (0,), tmp_path, path, until=0.0) and path.read_bytes() == before


def test_the_command_line_stops_in_time_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "experiments/claims/one_patch.py", "--scale", "miniature", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)

    stopped = run("--minutes", "0")
    assert stopped.returncode == 75 and not (tmp_path / "ledger.jsonl").exists(), stopped.stderr
    whole = run("--arms", "one")
    assert whole.returncode == 0 and whole.stdout.count('"arm"') == 5, whole.stderr


def test_a_run_that_two_claims_make_is_made_once(tmp_path: Path) -> None:
    made = []

    def pictures(name: str, scale: Scale) -> Pictures:
        from grid import pictures as plain

        made.append(name)
        return plain(name, scale)

    def claim(name: str) -> Claim:
        return Claim(name, "t", "s", lambda scale: [Arm("plain")], against="plain", pictures=pictures)

    path = tmp_path / "ledger.jsonl"
    for name in ("a", "b"):
        assert run_all(claim(name), SCALES["miniature"], [Arm("plain")], (0,), tmp_path, path, until=float("inf"))
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert made == ["cifar10"] and first["rows"] == second["rows"] and (first["experiment"], second["experiment"]) == ("a", "b")


def test_the_table_tells_differences_seed_by_seed() -> None:
    def entry(arm: str, seed: int, linear: float) -> ledger.Entry:
        cost = {"train_seconds": 2.0, "flops": 5.0}
        return ledger.Entry("x", arm, {}, "d", seed, "cpu", "m", {}, cost, {"linear": linear, "linear pixels": 10.0})

    claim = Claim("x", "t", "s", lambda scale: [], against="a", columns={"linear %": "linear"})
    told = table(claim, [entry("a", 0, 50.0), entry("a", 1, 52.0), entry("b", 0, 51.0), entry("b", 1, 50.0)])
    assert "| a | 51.00 ± 1.41 | - | 1.00 | 2 | 2 |" in told
    assert "| b | 50.50 ± 0.71 | +1.0, -2.0 | 1.00 | 2 | 2 |" in told
    assert "| floor: pixels | 10.00 | - | - | - | - |" in told
