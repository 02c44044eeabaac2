"""Sweeps: every choice once, chosen on pictures that no training saw, gone on with where they were stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smallview import sweeping as module
from smallview.comparing import compare, csv_text, markdown, sentences, table
from smallview.data.sources import open_source
from smallview.data.subsets import cut, taken
from smallview.errors import DataError, UsageError
from smallview.sweeping import choices, read_over, sweep


def data(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random, y = np.random.default_rng(seed), np.arange(n) % 3
    return np.clip(random.normal(60 + 60 * y[:, None, None, None], 30, (n, 8, 8, 3)), 0, 255).astype(np.uint8), y


GIVEN = {"encoder": "dense_small:8-16-32", "epochs": 1.0, "size": 8, "batch_size": 16, "threads": 1}


def test_every_choice_is_trained_and_ranked_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    original = module.pretrain

    def spy(data: Any, *args: Any, **options: Any) -> Any:
        seen.append((str(options["out"]), len(data)))
        return original(data, *args, **options)

    monkeypatch.setattr(module, "pretrain", spy)
    over = read_over(["optimizer.lr=0.001,0.01", "method=simclr,byol"])
    found = sweep(data(), over, out=tmp_path / "s", seeds=2, given=GIVEN, threads=1)
    assert len(seen) == 8 and {n for _, n in seen} == {54}
    assert len(found.trials) == 4 and found.metric == "linear top-1 %"
    means = [trial.mean for trial in found.trials]
    assert means == sorted(means, reverse=True) and all(trial.std is not None for trial in found.trials)
    best = found.trials[0]
    assert best.mean == pytest.approx(sum(best.scores.values()) / 2)
    assert f"optimizer.lr={best.settings['optimizer.lr']}" in found.command and best.settings["method"] in found.command
    again = sweep(data(), over, out=tmp_path / "s", seeds=2, given=GIVEN, threads=1)
    assert len(seen) == 8 and again.as_dict() == found.as_dict()
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["metric"] == found.metric
    # one more seed trains only that
    sweep(data(), over, out=tmp_path / "s", seeds=3, given=GIVEN, threads=1)
    assert len(seen) == 12


def test_a_choice_that_diverges_is_last(tmp_path: Path) -> None:
    found = sweep(data(), {"optimizer.lr": ["0.001", "900"]}, out=tmp_path / "s", given=GIVEN | {"epochs": 5.0}, threads=1)
    assert found.trials[0].settings["optimizer.lr"] == "0.001"
    assert found.trials[1].mean is None or found.trials[1].mean <= found.trials[0].mean


def test_without_labels_a_label_free_score_chooses(tmp_path: Path) -> None:
    x, _ = data(240)
    found = sweep(x, {"optimizer.lr": ["0.001"]}, out=tmp_path / "s", given=GIVEN, threads=1)
    assert found.metric.startswith("label_free") and found.trials[0].mean is not None
    with pytest.raises(UsageError, match="has no labels"):
        sweep(x, {"optimizer.lr": ["0.001"]}, out=tmp_path / "t", by="linear", given=GIVEN)


def test_choices() -> None:
    over = {"a": ["1", "2", "3"], "b": ["x", "y"]}
    assert len(choices(over, None, 0)) == 6
    drawn = choices(over, 4, 0)
    assert len({tuple(c.items()) for c in drawn}) == 4 and drawn == choices(over, 4, 0) != choices(over, 4, 1)
    assert len(choices(over, 100, 0)) == 6
    for pairs, told in ((["a"], "path=v1,v2"), (["a="], "path=v1"), ([], "nothing to go over"), (["a=1", "a=2"], "twice")):
        with pytest.raises(UsageError, match=told):
            read_over(pairs)
    with pytest.raises(UsageError, match="--random is 0"):
        choices(over, 0, 0)
    with pytest.raises(UsageError, match='has "many"; wanted a number'):
        sweep(data(), {"epochs": ["many"]}, out="unused", given={"size": 8})


def test_a_source_is_cut_by_class_and_its_parts_are_its_pictures() -> None:
    x, y = data(50)
    source = open_source((x, y))
    rest, held = cut(source, 0.1, seed=0)
    assert (len(rest), len(held)) == (44, 6) and np.bincount(held.labels).tolist() == [2, 2, 2]
    own = {x[i].tobytes() for i in range(50)}
    parts = [{part.read(i).tobytes() for i in range(len(part))} for part in (rest, held)]
    assert parts[0] | parts[1] == own and not parts[0] & parts[1]
    assert rest.fingerprint != held.fingerprint != source.fingerprint
    assert cut(source, 0.1, 0)[1].fingerprint == held.fingerprint != cut(source, 0.1, 1)[1].fingerprint
    with pytest.raises(DataError, match="class 1 of arrays has 1 picture"):
        cut(open_source((x[:3], [0, 0, 1])), 0.1, 0)
    with pytest.raises(DataError, match="two or more"):
        cut(open_source(x[:1]), 0.1, 0)


def test_files_are_cut_too(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(6):
        Image.fromarray(np.full((9, 9, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    some = taken(open_source(tmp_path), np.array([5, 2]), "some")
    assert [int(some.read(i)[0, 0, 0]) for i in range(2)] == [200, 80] and list(some.names) == ["5.png", "2.png"]
    assert some.root is None and len(some) == 2


def test_runs_of_a_sweep_are_compared_by_seed(tmp_path: Path) -> None:
    import smallview

    x, y = data(60)
    folders = []
    for method in ("simclr", "byol"):
        for seed in range(2):
            run = smallview.pretrain(x, method, out=tmp_path / f"{method}{seed}", seed=seed, quiet=True, **GIVEN)
            smallview.evaluate(run.path, (x, y), data(30, 1), "knn,linear", threads=1, cache=False)
            folders.append(run.path)
    found = compare(folders)
    assert found.groups == ("simclr", "byol") and [line.metric for line in found.lines] == [
        "knn20 top-1 %",
        "knn200 top-1 %",
        "linear top-1 %",
    ]
    head, rows = table(found)
    assert head == ["metric", "raw pixels", "untrained", "simclr", "byol"] and " ± " in rows[0][3]
    assert ["seeds", "", "", "2", "2"] in rows
    assert any("byol against simclr" in sentence for sentence in sentences(found))
    assert markdown(found).startswith("| metric |") and len(csv_text(found).splitlines()) == 1 + 3 * 4
    other = smallview.pretrain(x, "simclr", out=tmp_path / "warm", quiet=True, sets={"optimizer.lr": 0.01}, **GIVEN)
    smallview.evaluate(other.path, (x, y), data(30, 1), "linear", threads=1, cache=False)
    assert compare([*folders, other.path]).groups[2] == "simclr (optimizer.lr=0.01)"
    grown = {name: value for name, value in GIVEN.items() if name not in ("epochs", "minutes")}
    staged = smallview.pretrain(x, "simclr", out=tmp_path / "staged", quiet=True, stages="8x1,16x1", subset="50%", **grown)
    smallview.evaluate(staged.path, (x, y), data(30, 1), "linear", threads=1, cache=False)
    assert compare([folders[0], staged.path]).groups[1].startswith('simclr (stages="8x1, 16x1"; subset="50%"')
    with pytest.raises(UsageError, match="twice"):
        compare([folders[0], folders[0]])
    with pytest.raises(UsageError, match="no finished run"):
        compare([tmp_path / "nothing"])
    smallview.evaluate(other.path, (x[:30], y[:30]), data(30, 1), "linear", threads=1, cache=False)
    assert compare([folders[0], other.path]).lines  # the shared judgement still counts
