"""The story of one run: it goes on to the same bits however it was ended, and what it was is written down before it begins."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kill_server import Server
from torch import nn

import smallview as sv
from smallview import run as story
from smallview import single
from smallview.cli import main
from smallview.config import RunConfig
from smallview.errors import DataError, LockedError, StoppedError, UsageError
from smallview.settings import dump_toml, from_tables, load_toml

pytestmark = pytest.mark.usefixtures("desk", "one_thread")

# one of each kind of state and of draws: none, a queue, a target, candidates, patches, slices
METHODS = ("simclr", "moco_v2", "byol", "simo", "simclr_one_patch", "lejepa")
KILLS = {"simclr": 10, "moco_v2": 5, "byol": 5, "simo": 5}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    desk = tmp_path_factory.mktemp("desk")
    np.save(desk / "array.npy", pictures())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLVIEW_CACHE", str(desk / "cache"))
        yield desk


def pictures(n: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, 16, 16, 3), dtype=np.uint8)


def command(desk: Path, out: Path, method: str) -> list[str]:
    text = f"pretrain {desk / 'array.npy'} --method {method} --size 16 --batch-size 16 --epochs 4 --threads 1"
    return [*text.split(), "--encoder", "dense_small:8-16-32", "--save-every", "0.02", "--out", str(out)]


def tiny(**more: Any) -> dict[str, Any]:
    return {"encoder": "dense_small:8-16-32", "batch_size": 16, "threads": 1, "quiet": True, "epochs": 2, **more}


def weights(folder: Path) -> bytes:
    return (folder / "encoder" / "model.safetensors").read_bytes()


def steps_logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses_logged(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@functools.cache
def _reference(server: Server, desk: Path, method: str) -> tuple[Path, float]:
    out = desk / f"whole-{method}"
    started = time.monotonic()
    code, said = server.run(command(desk, out, method))
    assert code == 0, said
    return out, time.monotonic() - started


@pytest.fixture
def reference(server: Server, desk: Path) -> Callable[[str], tuple[Path, float]]:
    """The folder of an uninterrupted run of a method, made once, and the seconds it took."""
    return lambda method: _reference(server, desk, method)


@pytest.mark.parametrize("method", KILLS)
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    method: str, server: Server, desk: Path, reference: Callable[[str], tuple[Path, float]]
) -> None:
    whole, seconds = reference(method)
    draw = random.Random(f"kills {method}")
    kills, resumed, round_ = 0, 0, 0
    while kills < KILLS[method]:
        out = desk / f"killed-{method}-{round_}"
        round_ += 1
        while True:
            child = server.start(command(desk, out, method))
            if kills < KILLS[method]:
                time.sleep(draw.uniform(0.05, 0.7) * seconds)
                os.kill(child, signal.SIGKILL)
            code, said = server.end()
            assert "Traceback" not in said and code in (0, -signal.SIGKILL), said
            if "resuming at step" in said:
                resumed += 1
            if code == 0:
                break
            kills += 1
        assert weights(out) == weights(whole)
        assert steps_logged(out) == steps_logged(whole) == [10, 16]
        assert losses_logged(out) == losses_logged(whole)
        shutil.rmtree(out)
    assert resumed >= 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_with_75_and_the_command_goes_on(
    number: signal.Signals, server: Server, desk: Path, reference: Callable[[str], tuple[Path, float]]
) -> None:
    whole, seconds = reference("simclr")
    out = desk / f"stopped-{number}"
    tokens = command(desk, out, "simclr")
    stops = 0
    for share in (0.0, 0.2, 0.4, 0.3, *[0.0] * 10, None):
        child = server.start(tokens)
        if share is not None:
            while not server.said.read_text():  # from its first word on it knows what to do with a signal
                time.sleep(0.005)
            time.sleep(share * seconds)
            os.kill(child, number)
        code, said = server.end()
        if (
            "finished: " in said or "is finished" in said
        ) and stops:  # the one before may have been struck down in its last words
            break
        if "step 16/16" in said:  # a busy machine may send its signals when all steps are done; then once more
            if not stops:
                shutil.rmtree(out)
            continue
        assert "Traceback" not in said
        stops += 1
        assert code == 75, said
        assert said.splitlines()[-1].endswith("go on with: smallview " + " ".join(tokens))
    assert stops >= 1
    assert weights(out) == weights(whole)
    assert steps_logged(out) == steps_logged(whole)
    shutil.rmtree(out)


def test_a_second_ctrl_c_ends_at_once(server: Server, desk: Path) -> None:
    out = desk / "impatient"
    tokens = command(desk, out, "simclr")
    tokens[tokens.index("--epochs") + 1] = "1000"
    tokens[tokens.index("16", tokens.index("--batch-size"))] = "64"
    tokens[tokens.index("--encoder") + 1] = "dense_small"  # a step that takes its time
    child = server.start(tokens)
    while not (out / "checkpoints" / "latest").exists():
        time.sleep(0.02)
    os.kill(child, signal.SIGINT)
    while "stopping after this step" not in server.said.read_text():
        time.sleep(0.001)
    os.kill(child, signal.SIGINT)
    code, said = server.end()
    assert code in (130, 75), said  # 75 where the step and the save had ended meanwhile
    assert "Traceback" not in said


def test_two_processes_do_not_share_a_folder(
    stop_after: Callable[[pytest.MonkeyPatch, int], None],
    server: Server,
    desk: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(story, "lock_folder", functools.partial(story.lock_folder, wait_s=0.2))
    out = desk / "shared"
    tokens = command(desk, out, "simclr")
    tokens[tokens.index("--epochs") + 1] = "1000"
    child = server.start(tokens)
    while not (out / "run.toml").exists():
        time.sleep(0.02)
    before = (out / "run.toml").read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(tokens)
    assert ended.value.code == 4
    assert f"in use by pid {child} on host" in capsys.readouterr().err
    assert (out / "run.toml").read_bytes() == before
    os.kill(child, signal.SIGKILL)
    assert server.end()[0] == -signal.SIGKILL
    with pytest.raises(StoppedError), pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)  # the lock went with its holder
        sv.pretrain(str(desk / "array.npy"), out=out, size=16, **tiny(epochs=1000))


@pytest.mark.parametrize("method", METHODS)
def test_stopped_in_the_middle_of_an_epoch(
    stop_after: Callable[[pytest.MonkeyPatch, int], None],
    method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = sv.pretrain(pictures(), method, out=tmp_path / "whole", **tiny())
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        for step in (2, 4, 6):
            with pytest.raises(StoppedError, match=f"stopped at step {step} of 8 and saved; the same call goes on"):
                sv.pretrain(pictures(), method, out=tmp_path / "parts", **tiny())
    capsys.readouterr()
    parts = sv.pretrain(pictures(), method, out=tmp_path / "parts", **tiny(quiet=False))
    assert "resuming at step 6 of 8" in capsys.readouterr().err
    assert weights(parts.path) == weights(whole.path)
    assert steps_logged(parts.path) == steps_logged(whole.path) == [8]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    stop_after: Callable[[pytest.MonkeyPatch, int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = sv.pretrain(pictures(), out=tmp_path / "whole", **tiny())
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(StoppedError):
            sv.pretrain(pictures(), out=tmp_path / "hurt", **tiny(save_every=1e-9))
    newest = tmp_path / "hurt" / "checkpoints" / "step-000006" / "tensors.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    capsys.readouterr()
    hurt = sv.pretrain(pictures(), out=tmp_path / "hurt", **tiny(quiet=False))
    said = capsys.readouterr().err
    assert "step 6" in said and "damaged" in said and "resuming at step 5 of 8" in said
    assert weights(hurt.path) == weights(whole.path)


def test_minutes_fix_the_steps_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tiny(minutes=0.003, epochs=None)
    with monkeypatch.context() as patch:
        patch.setattr(single, "_train", lambda *_: pytest.fail("the record was wanted before the first step"))
        patch.setattr(single, "_train", _looking_at(tmp_path / "run" / "run.toml"))
        with pytest.raises(StoppedError):
            sv.pretrain(pictures(), out=tmp_path / "run", **given)
    fixed = load_toml(tmp_path / "run" / "run.toml")
    assert fixed["minutes"] == 0.003 and fixed["epochs"] == "none" and fixed["steps"] >= 1
    monkeypatch.setattr(single, "calibrate", lambda *_: pytest.fail("a run that began is not measured again"))
    run = sv.pretrain(pictures(), out=tmp_path / "run", **given)
    assert load_toml(tmp_path / "run" / "run.toml") == fixed
    assert steps_logged(run.path)[-1] == fixed["steps"]
    equal = sv.pretrain(pictures(), out=tmp_path / "equal", config=str(tmp_path / "run" / "run.toml"), quiet=True)
    assert weights(equal.path) == weights(run.path)


def _looking_at(record: Path) -> Callable[..., float]:
    def train(*_: object) -> float:
        assert load_toml(record)["steps"] >= 1
        raise StoppedError("stopped")

    return train


@pytest.mark.parametrize("method", METHODS)
def test_run_toml_holds_every_setting(method: str, tmp_path: Path) -> None:
    given = tiny(epochs=1, sets={"optimizer.lr": 0.01, "method.views.1.blur": 0.0})
    first = sv.pretrain(pictures(), method, out=tmp_path / "a", **given)
    again = sv.pretrain(pictures(), out=tmp_path / "b", config=str(first.path / "run.toml"), quiet=True)
    read = []
    for run in (first, again):
        tables = load_toml(run.path / "run.toml")
        assert tables.pop("format_version") == 2
        found = {"data_hash", "pictures", "centre", "precision", "processes", "torch", "python", "machine"}
        assert set(tables.pop("recorded")) == found
        read.append(from_tables(RunConfig, tables))
    assert read[0] == read[1]
    assert (read[0].preset, read[0].optimizer.lr, read[0].method.views[1].blur, read[0].steps) == (method, 0.01, 0.0, 4)
    assert weights(first.path) == weights(again.path)


def half_done(
    out: Path, stop_after: Callable[[pytest.MonkeyPatch, int], None], monkeypatch: pytest.MonkeyPatch, **more: Any
) -> None:
    """A run that was stopped after two steps."""
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(StoppedError):
            sv.pretrain(pictures(), out=out, **tiny(**more))


def test_other_settings_or_pictures_are_refused_and_nothing_changes(
    stop_after: Callable[[pytest.MonkeyPatch, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    half_done(out, stop_after, monkeypatch)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    for changed, words in (
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"epochs": 3}, "epochs: 2.0 -> 3.0"),
        ({"method": "byol"}, "preset"),
        ({"batch_size": 8}, "batch_size: 16 -> 8"),
        ({"size": 12}, "size: 16 -> 12"),
        ({"stem": "standard"}, "stem"),
        ({"encoder": "resnet10t"}, "encoder"),
        ({"sets": {"method.views.0.flip": 0.0}}, "method.views.0.flip: 0.5 -> 0.0"),
        ({"sets": {"optimizer.weight_decay": 0.5}}, "optimizer.weight_decay"),
    ):
        with pytest.raises(UsageError, match=words):
            sv.pretrain(pictures(), out=out, **tiny(**changed))
    with pytest.raises(DataError, match="the pictures changed since"):
        sv.pretrain(pictures()[::-1], out=out, **tiny())
    assert {path: path.read_bytes() for path in before} == before
    sv.pretrain(pictures(), out=out, **tiny(save_every=1.0))


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    for bad in ({"encoder": nn.Conv2d(3, 8, 3)}, {"encoder": "custom:Net"}, {"batch_size": 100}):
        with pytest.raises(UsageError):
            sv.pretrain(pictures(), out=tmp_path / "deep" / "run", **tiny(**bad))
        assert list(tmp_path.iterdir()) == []


def test_smoothing_over_more_negatives_than_there_are_is_told_before_anything_runs(tmp_path: Path) -> None:
    soft = {"method.objective.contrastive.loss.soft_targets": "NearestSmoothing(0.2, 20)"}
    for method, more, words in (
        ("moco_v2", {"method.negatives.size": 8}, "smooths over 20 nearest negatives and a query has 8"),
        ("simo", {"method.negatives.per_query": 4}, "a query has 4"),
        ("simo", {"method.negatives.per_query": "none"}, "a query has 15, with 16 pictures in a batch"),
        ("simclr_one_patch", {}, "a query has 1"),
    ):
        with pytest.raises(UsageError, match=words):
            sv.pretrain(pictures(), method, out=tmp_path / "run", **tiny(sets={**soft, **more}))
        assert list(tmp_path.iterdir()) == []
    sv.pretrain(pictures(), "simclr", out=tmp_path / "run", **tiny(epochs=1, sets=soft))  # 30 negatives


def test_an_empty_folder_of_the_users_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError):
        sv.pretrain(pictures(), out=tmp_path / "mine", **tiny(batch_size=100))
    assert (tmp_path / "mine").is_dir()


def test_misspelt_arguments_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='unknown key "epoch"; did you mean "epochs"'):
        sv.pretrain(pictures(), out=tmp_path / "run", epoch=3)
    with pytest.raises(UsageError, match="method is a Method; wanted a name"):
        sv.pretrain(pictures(), sv.method("simclr"), out=tmp_path / "run")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_preset_given_as_a_setting_brings_its_method(tmp_path: Path) -> None:
    run = sv.pretrain(pictures(), preset="byol", out=tmp_path / "run", **tiny(epochs=1))
    assert "alignment" in load_toml(run.path / "run.toml")["method"]["objective"]


def test_a_module_of_the_users_is_trained_as_a_copy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = [parameter.clone() for parameter in mine.parameters()]
    run = sv.pretrain(pictures(), out=tmp_path / "run", **tiny(encoder=mine))
    assert all(torch.equal(a, b) for a, b in zip(before, mine.parameters(), strict=True))
    assert not torch.equal(before[0], next(run.encoder.parameters()))
    with pytest.raises(UsageError, match="a module of your own"):
        sv.load(run.path)
    x = torch.zeros(2, 3, 16, 16)
    assert torch.equal(sv.load(run.path, into=mine)(x), run.encoder(x))


class Dataset:
    """What torch data sets look like."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return pictures()[i], i % 2


def test_arrays_paths_and_data_sets_give_the_same_encoder(tmp_path: Path) -> None:
    from PIL import Image

    paths = []
    for i, image in enumerate(pictures()):
        paths.append(tmp_path / f"{i:02}.png")
        Image.fromarray(image).save(paths[-1])
    runs = [
        sv.pretrain(data, out=tmp_path / "runs" / str(k), **tiny(epochs=1))
        for k, data in enumerate((pictures(), paths, [str(path) for path in paths], Dataset()))
    ]
    assert len({weights(run.path) for run in runs}) == 1


def test_the_walk_from_pretrain_to_rows(tmp_path: Path) -> None:
    labels = np.arange(64) % 2
    run = sv.pretrain(pictures(), out=tmp_path / "run", **tiny(epochs=1))
    encoder = sv.load(run.path)
    assert not encoder.training and encoder(torch.zeros(3, 3, 16, 16)).shape == (3, 32)
    features = sv.embed(run.path, pictures())
    assert features.shape == (64, 32) and features.dtype == np.float32
    rows = sv.evaluate(run.path, (pictures(), labels), (pictures(), labels), protocols=("knn",), threads=1)
    assert sv.pretrain(pictures(), out=tmp_path / "run", **tiny(epochs=1)).rows == rows
    assert set(METHODS) < set(sv.methods())
    assert sv.preset("simclr").method == sv.method("simclr")


def test_a_locked_folder_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallview.training.launch import lock_folder, prepare_folder

    monkeypatch.setattr(story, "lock_folder", functools.partial(story.lock_folder, wait_s=0.05))
    prepare_folder(tmp_path / "run")
    with lock_folder(tmp_path / "run"), pytest.raises(LockedError, match=f"in use by pid {os.getpid()}"):
        sv.pretrain(pictures(), out=tmp_path / "run", **tiny())


def test_demo_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from smallview import demo as show

    x, y, x_test, y_test = show.digits()
    monkeypatch.setattr(show, "digits", lambda: (x[:200], y[:200], x_test[:100], y_test[:100]))
    monkeypatch.setattr(show, "measure", functools.partial(show.measure, draws=2))
    show.demo(tmp_path / "demo", epochs=1)
    told = capsys.readouterr()
    written = [Path(line) for line in told.out.splitlines() if line.startswith(str(tmp_path))]
    assert len(written) == 5 and all(path.exists() for path in written)
    for name in ("raw pixels", "untrained encoder", "pretrained encoder"):
        assert name in told.out
    before = weights(tmp_path / "demo" / "run")
    results = show.demo(tmp_path / "demo", epochs=1, as_json=True)
    told = capsys.readouterr()
    assert "is finished" in told.err
    assert told.out.count("\n") == 1
    found = json.loads(told.out)
    assert found["accuracy"] == results
    assert found["paths"] == [str(path) for path in written]
    assert json.loads((tmp_path / "demo" / "results.json").read_text()) == results
    assert weights(tmp_path / "demo" / "run") == before
    index = (tmp_path / "demo" / "embeddings" / "index.jsonl").read_text().splitlines()
    assert len(index) == len(np.load(tmp_path / "demo" / "embeddings" / "embeddings.npy")) == 200

    # a demo that another version left with other settings stays, and the new one stands beside it
    show.demo(tmp_path / "demo", epochs=0.5, as_json=True)
    told = capsys.readouterr()
    assert "epochs: 1.0 -> 0.5" in told.err
    assert str(tmp_path / "demo" / "run-2" / "encoder") in json.loads(told.out)["paths"]
    assert weights(tmp_path / "demo" / "run") == before


def test_a_run_of_an_earlier_version_is_told_of_as_one(
    stop_after: Callable[[pytest.MonkeyPatch, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    half_done(out, stop_after, monkeypatch, sets={"optimizer.lr": 0.01})
    tables = load_toml(out / "run.toml")
    earlier = {name: value for name, value in tables.items() if name not in ("pack", "augmentation", "masks")}
    for version, words in (
        (1, "began with an earlier version of smallview, whose views were others; finish it there, or add --fresh"),
        (3, "has format_version 3; this version goes on with 2: add --fresh or another --out"),
    ):
        (out / "run.toml").write_text(dump_toml({**earlier, "format_version": version}))
        with pytest.raises(UsageError, match=words):
            sv.pretrain(pictures(), out=out, **tiny())
    (out / "run.toml").write_text(dump_toml({**earlier, "format_version": 1}))
    (tmp_path / "old.toml").write_bytes((out / "run.toml").read_bytes())
    again = sv.pretrain(pictures(), out=tmp_path / "again", config=str(tmp_path / "old.toml"), quiet=True)
    read = load_toml(again.path / "run.toml")
    assert {**read, "recorded": {}} == {**tables, "recorded": {}}
    for name in ("encoder", "summary.json"):
        shutil.copytree(again.path / name, out / name) if name == "encoder" else shutil.copy(again.path / name, out / name)
    with pytest.raises(
        UsageError, match="run was made by an earlier version of smallview, whose views were others; add --fresh"
    ):
        sv.pretrain(pictures(), out=out, **tiny())
