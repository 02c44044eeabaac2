"""Runs of several stages: what is handed over, and that they end with the same bits wherever they are killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kill_server import Server

import smallview as sv
from smallview import chain, single
from smallview.cli import main
from smallview.continuing import stages_of, stored_config
from smallview.data.subsets import Subset, read_subset
from smallview.errors import DataError, UsageError
from smallview.networks.encoders import load_encoder
from smallview.settings import load_toml
from smallview.stages import Stage, read_stages
from smallview.training import checkpoint

pytestmark = pytest.mark.usefixtures("desk", "one_thread")

KILLS = 3


class Killed(BaseException):
    """As if the process had been killed: nothing catches it."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    desk = tmp_path_factory.mktemp("desk")
    np.save(desk / "array.npy", pictures())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLVIEW_CACHE", str(desk / "cache"))
        yield desk


def pictures(n: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, 16, 16, 3), dtype=np.uint8)


def staged(folder: Path, stages: str | tuple[Stage, ...] = "8x2,16x1", data: Any = None, **more: Any) -> Path:
    given = {"encoder": "dense_small:8-16-32", "batch_size": 16, "threads": 1, "quiet": True, "method": "moco_v2", **more}
    given["stages"] = read_stages(stages) if isinstance(stages, str) else stages
    return sv.pretrain(pictures() if data is None else data, out=folder, **given).path


def weights(folder: Path) -> bytes:
    return (folder / "encoder" / "model.safetensors").read_bytes()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    loaded = checkpoint.load_latest(folder / "checkpoints")
    assert loaded is not None
    return loaded[1]


@pytest.fixture(scope="module")
def whole(desk: Path) -> Path:
    """A run of two stages that nobody interrupted."""
    return staged(desk / "whole")


def test_the_run_is_what_its_last_stage_came_to(whole: Path) -> None:
    first, last = stages_of(whole)
    assert (first.name, last.name) == ("1-8px", "2-16px")
    assert weights(whole) == weights(last) != weights(first)
    summary = json.loads((whole / "summary.json").read_text())
    parts = [json.loads((place / "summary.json").read_text())["cost"] for place in (first, last)]
    assert summary["cost"]["steps"] == 9 == sum(part["steps"] for part in parts)
    assert summary["cost"]["flops"] == pytest.approx(sum(part["flops"] for part in parts), rel=1e-4)
    assert summary["cost"]["epochs_224"] == pytest.approx(sum(part["epochs_224"] for part in parts), rel=1e-3)
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == sorted(record["step"] for record in records)
    assert records[-1]["step"] == 9 and {record["stage"] for record in records} == {1, 2}
    assert load_encoder(whole)[1].size == 16


def test_weights_target_and_queue_are_handed_over_and_the_optimizer_is_not(whole: Path, desk: Path, tmp_path: Path) -> None:
    first, last = stages_of(whole)
    before = tensors(first)
    seen: dict[str, torch.Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:

        def train(parts: Any, *_: object) -> None:
            if parts.config.size == 16:
                seen.update({name: value.clone() for name, value in parts.state.tensors().items()})
                seen["lr"] = torch.tensor(parts.lr().at(parts.config.span[0]))
                raise Killed

        real = single._train
        patch.setattr(single, "_train", lambda parts, *rest: train(parts) or real(parts, *rest))
        with pytest.raises(Killed):
            staged(tmp_path / "run")
    carried = [name for name in before if name.startswith(("networks.", "bank."))]
    assert any(name.startswith("bank.") for name in carried) and any("target" in name for name in carried)
    assert all(torch.equal(seen[name], before[name]) for name in carried)
    assert not any(name.startswith("optimizer.") for name in seen) and seen["lr"] == 0.0
    means = {load_encoder(place)[1].mean for place in (first, last)}
    assert len(means) == 1


def test_a_stage_that_goes_on_has_optimizer_and_rate_of_the_one_before(tmp_path: Path) -> None:
    one = sv.pretrain(
        pictures(),
        "moco_v2",
        encoder="dense_small:8-16-32",
        out=tmp_path / "one",
        epochs=3,
        size=8,
        batch_size=16,
        threads=1,
        quiet=True,
    ).path
    stages = (Stage(8, epochs=2.0), Stage(8, epochs=1.0, schedule="continue"))
    began: list[dict[str, torch.Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        real = single._train

        def train(parts: Any, *rest: Any) -> None:
            began.append({k: v.clone() for k, v in parts.state.tensors().items() if k.startswith("optimizer.")})
            real(parts, *rest)

        patch.setattr(single, "_train", train)
        two = staged(tmp_path / "two", stages)
    rates = {}
    for path in (one, two):
        rates[path] = {
            record["step"]: record["lr"] for record in map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
        }
    assert rates[two][9] == pytest.approx(rates[one][9]) and rates[two][6] > rates[two][9] > 0.0
    ended = {name: value for name, value in tensors(stages_of(two)[0]).items() if name.startswith("optimizer.")}
    assert not began[0] and set(began[1]) == set(ended) != set()
    assert all(torch.equal(value, ended[name]) for name, value in began[1].items())


def test_a_target_follows_in_stages_that_go_on_as_in_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallview.networks.online_target import Momentum

    seen: list[tuple[float, int]] = []
    monkeypatch.setattr(Momentum, "at", lambda self, progress, steps: seen.append((round(progress, 9), steps)) or 0.9)
    stages = (Stage(8, epochs=1.0), Stage(8, epochs=2.0, schedule="continue"))
    staged(tmp_path / "two", stages, encoder="dense_small:8-16")
    assert seen == [(round(step / 9, 9), 9) for step in range(9)]


def test_the_second_stage_sees_other_views_in_another_order(whole: Path) -> None:
    seeds = {load_toml(place / "run.toml")["seed"] for place in stages_of(whole)}
    assert len(seeds) == 2 and load_toml(whole / "run.toml")["seed"] in seeds


WORST = {
    "before the encoder of the first stage is written": (single, "save_encoder"),
    "between its encoder and its summary": (single, "write_text"),
    "before the second stage reads what it begins with": (chain.Ended, "of"),
    "before the second stage writes what it is": (single, "write_config"),
    "before its first checkpoint": (single, "_train"),
    "before the run's own encoder is written": (chain, "_finish"),
    "before the run's metrics are joined": (chain, "_join_metrics"),
}


@pytest.mark.parametrize("moment", WORST)
@pytest.mark.parametrize("nth", [1, 2])
def test_killed_at_the_worst_moments_it_ends_with_the_same_bits(
    moment: str, nth: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name = WORST[moment]
    real, calls = getattr(place, name), 0

    def dies(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, dies)
        try:
            staged(tmp_path / "run")
        except Killed:
            pass
        else:
            assert calls < nth, "the moment has come"
    again = staged(tmp_path / "run")
    assert weights(again) == weights(whole)
    lines = [
        [{k: v for k, v in json.loads(line).items() if k in ("step", "loss", "stage", "epoch")} for line in text.splitlines()]
        for text in ((path / "metrics.jsonl").read_text() for path in (again, whole))
    ]
    assert lines[0] == lines[1]


def test_killed_at_random_moments_it_ends_with_the_same_bytes(server: Server, desk: Path) -> None:
    text = f"pretrain {desk / 'array.npy'} --method moco_v2 --stages 8x3,16x2 --batch-size 16 --threads 1 --save-every 0.02"
    text += " --encoder dense_small:8-16-32"
    started = time.monotonic()
    code, said = server.run([*text.split(), "--out", str(desk / "calm")])
    assert code == 0, said
    seconds = time.monotonic() - started
    draw, kills = random.Random("stages"), 0
    while kills < KILLS:
        out = desk / f"killed-{kills}"
        while True:
            child = server.start([*text.split(), "--out", str(out)])
            if kills < KILLS:
                time.sleep(draw.uniform(0.05, 0.9) * seconds)
                os.kill(child, signal.SIGKILL)
            code, said = server.end()
            assert "Traceback" not in said and code in (0, -signal.SIGKILL), said
            if code == 0:
                break
            kills += 1
        assert weights(out) == weights(desk / "calm")
        shutil.rmtree(out)


def test_a_finished_run_of_stages_is_left_as_it_is(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "_train", lambda *_: pytest.fail("it is finished"))
    before = weights(whole)
    staged(whole, quiet=False)
    assert weights(whole) == before


@pytest.mark.parametrize("part", [None, "50%"])
def test_a_finished_run_of_stages_is_not_taken_for_one_of_other_pictures(part: str | None, tmp_path: Path) -> None:
    more = {} if part is None else {"subset": read_subset(part)}
    path = staged(tmp_path / "run", "8x2", size=16, **more)
    before = weights(path), (path / "summary.json").read_bytes()
    assert staged(tmp_path / "run", "8x2", size=16, **more) == path
    assert (weights(path), (path / "summary.json").read_bytes()) == before
    with pytest.raises(DataError, match="the pictures changed since"):
        staged(tmp_path / "run", "8x2", size=16, data=255 - pictures(), **more)
    with pytest.raises(DataError, match="the pictures changed since"):
        staged(tmp_path / "run", "8x2", size=16, data=pictures(60), **more)
    assert (weights(path), (path / "summary.json").read_bytes()) == before


def test_other_stages_are_another_run(whole: Path) -> None:
    with pytest.raises(UsageError, match=r"holds a run with other settings \(.*stages"):
        staged(whole, "8x2,16x2")


@pytest.mark.parametrize("parts", [(None, None), (Subset(pictures=30), Subset(pictures=40))])
def test_pictures_that_change_between_two_stages_are_told(
    parts: tuple[Subset | None, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = (Stage(8, epochs=1.0, subset=parts[0]), Stage(16, epochs=1.0, subset=parts[1]))
    with monkeypatch.context() as patch:
        patch.setattr(chain.Ended, "of", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            staged(tmp_path / "run", stages)
    changed = pictures()
    changed[3] = 255 - changed[3]
    with pytest.raises(DataError, match="the pictures changed since"):
        staged(tmp_path / "run", stages, data=changed)
    path = staged(tmp_path / "run", stages, data=changed, accept_data_change=True)
    assert load_toml(stages_of(path)[1] / "run.toml")["recorded"]["data_changes"] == ["step 0: 1 changed (03)"]


def test_every_stage_sees_its_own_part_and_says_which(tmp_path: Path) -> None:
    data = (pictures(), np.arange(48) % 4)
    stages = (Stage(8, epochs=1.0, subset=Subset(per_class=5)), Stage(16, epochs=1.0, subset=Subset(per_class=9)))
    path = staged(tmp_path / "run", stages, data)
    small, large = (json.loads((place / "subset.json").read_text()) for place in stages_of(path))
    assert (len(small["positions"]), len(large["positions"])) == (20, 36)
    assert set(small["names"]) < set(large["names"]) and small["pictures"] == 48


def test_epochs_at_224_px_are_of_all_the_pictures(tmp_path: Path) -> None:
    half = Subset(fraction=0.5, equal_steps=True)
    stages = (Stage(16, epochs=2.0, subset=half), Stage(16, epochs=2.0))
    path = staged(tmp_path / "run", stages, encoder="dense_small:8-16", batch_size=8)
    part, whole = (json.loads((place / "summary.json").read_text())["cost"] for place in stages_of(path))
    assert (part["steps"], part["flops"]) == (whole["steps"], whole["flops"])
    assert part["epochs_224"] == pytest.approx(whole["epochs_224"])


def test_a_subset_chosen_by_an_encoder_stays_when_the_run_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smallview import choosing

    given: dict[str, Any] = {
        "batch_size": 8,
        "threads": 1,
        "quiet": True,
        "epochs": 2,
        "subset": Subset(20, chosen_by=str(whole)),
    }
    with monkeypatch.context() as patch:
        patch.setattr(single, "_train", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            sv.pretrain(pictures(), out=tmp_path / "run", **given)
    listed = (tmp_path / "run" / "subset.json").read_bytes()
    monkeypatch.setattr(choosing, "embed_pack", lambda *_, **__: pytest.fail("it was chosen already"))
    sv.pretrain(pictures(), out=tmp_path / "run", **given)
    assert (tmp_path / "run" / "subset.json").read_bytes() == listed
    assert len(json.loads(listed)["positions"]) == 20


def test_pictures_chosen_for_a_start_that_failed_are_not_those_of_the_next_one(whole: Path, tmp_path: Path) -> None:
    from smallview import choosing
    from smallview.data.sources import open_source

    given: dict[str, Any] = {"threads": 1, "quiet": True, "epochs": 1, "out": tmp_path / "run"}
    with pytest.raises(UsageError, match="batch_size is 30"):
        sv.pretrain(pictures(), batch_size=30, subset=Subset(20, chosen_by=str(whole)), **given)
    assert not (tmp_path / "run").exists(), "a run that never began leaves nothing behind"
    config = stored_config(whole)
    assert config is not None
    tmp_path.joinpath("list").mkdir()
    for n in (20, 10):
        subset = Subset(n, chosen_by=str(whole))
        part, _ = choosing.part_of(
            open_source(pictures()), replace(config, subset=subset), 0, tmp_path / "list", lambda message: None
        )
        assert len(part) == n


def test_a_run_of_stages_is_judged_and_embedded_like_any_other(whole: Path) -> None:
    labels = np.arange(48) % 3
    rows = sv.evaluate(
        whole, (pictures(), labels), (pictures(), labels), ("knn", "layers"), threads=1, leaks=False, cache=False
    )
    assert any(row.metric.startswith("layers projector") for row in rows), "the projector is found in the last stage"
    assert sv.embed(whole, pictures(), threads=1).shape == (48, 32)
    assert len((whole / "rows.jsonl").read_text().splitlines()) == len(rows)


def test_resuming_from_a_run_of_stages_names_one_of_them(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a run of 2 stages; wanted one of them, such as .*2-16px"):
        sv.pretrain(pictures(), resume_from=whole, out=tmp_path / "on", quiet=True)


@pytest.mark.parametrize(
    ("stages", "encoder"),
    [
        pytest.param((Stage(16, epochs=1.0), Stage(32, epochs=1.0)), "vit_tiny_patch16_224", marks=pytest.mark.slow),
        ((Stage(8, epochs=1.0, depth=2), Stage(16, epochs=2.0, depth=3, trains="new")), "dense_small:8-16-16"),
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_a_training_goes_on_from_a_stage_as_the_stage_itself_would(
    stages: tuple[Stage, ...], encoder: str, number: int, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"encoder": encoder, "method": "simclr", "subset": Subset(pictures=32)}
    place = stages_of(staged(tmp_path / "run", stages, **more))[number]
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single, "_train", lambda parts, *_: seen.update(parts=parts))
        sv.pretrain(pictures(), encoder=None, resume_from=place, out=tmp_path / "on", threads=1, quiet=True)
    state, ended = seen["parts"].state, tensors(place)
    assert set(state.tensors()) == set(ended) and all(torch.equal(v, ended[name]) for name, v in state.tensors().items())
    assert load_encoder(tmp_path / "on")[1] == load_encoder(place)[1]
    assert (tmp_path / "on" / "subset.json").read_bytes() == (place / "subset.json").read_bytes()


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--stages 8x2;16x1", "is no stage"),
        ("--stages 8x50%,16x20%", "70% of the run"),
        ("--stages 8x2,16x1 --minutes 3", "wanted one of them"),
        ("--subset 4000", "4,000 pictures of array are asked for and there are 48"),
        ("--subset 3/class", "has no labels"),
        ("--depth 9", "9"),
    ],
)
def test_the_command_line_says_what_does_not_fit(
    flags: str, wanted: str, desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", str(desk / "array.npy"), *flags.split(), "--out", str(tmp_path / "no"), "--quiet"])
    said = capsys.readouterr().err
    assert ended.value.code in (2, 3), said
    assert wanted in said and "Traceback" not in said
    assert not (tmp_path / "no" / "encoder").exists()


@pytest.mark.parametrize("encoder", ["dense_small", "resnet10t"])
def test_a_dropped_stage_is_grown_again_and_the_rest_kept_to_the_bit(encoder: str, tmp_path: Path) -> None:
    stages = (Stage(16, epochs=1.0, depth=4), Stage(16, epochs=0.01, lr=1e-30, depth=5))
    path = staged(tmp_path / "run", stages, encoder=encoder)
    first, last = stages_of(path)
    small, config = load_encoder(first)
    full, _ = load_encoder(last)
    assert config.depth == 4 and load_encoder(path)[1].depth is None
    kept, grown = dict(small.named_parameters()), dict(full.named_parameters())
    assert set(kept) < set(grown) and all(torch.equal(kept[name], grown[name]) for name in kept)
    assert sum(p.numel() for p in kept.values()) < 0.6 * sum(p.numel() for p in grown.values())


@pytest.mark.parametrize("depth", [2, 3])
def test_a_queue_of_another_projector_is_not_taken_over(depth: int, tmp_path: Path) -> None:
    stages = (Stage(16, epochs=2.0, depth=depth), Stage(16, epochs=1.0, depth=3))
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        real = single._train

        def train(parts: Any, *rest: Any) -> None:
            seen[parts.config.seed] = parts.state.bank["keys"].clone()
            real(parts, *rest)

        patch.setattr(single, "_train", train)
        path = staged(tmp_path / "run", stages, encoder="dense_small:8-16-32")
    first, last = stages_of(path)
    kept = torch.equal(seen[load_toml(last / "run.toml")["seed"]], tensors(first)["bank.keys"])
    assert kept == (depth == 3)


def test_patches_that_are_negatives_are_no_queue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    staged(tmp_path / "run", method="simclr_one_patch", encoder="dense_small:8-16", quiet=False)
    assert "queue" not in capsys.readouterr().err


@pytest.mark.parametrize("batch_norm", ["moves", "fixed"])
def test_only_what_is_new_is_trained_where_that_is_asked_for(batch_norm: Any, tmp_path: Path) -> None:
    stages = (Stage(16, epochs=1.0, depth=4), Stage(16, epochs=1.0, depth=5, trains="new", batch_norm=batch_norm))
    path = staged(tmp_path / "run", stages, encoder="dense_small:8-16-32-32-48")
    first, last = ({name: value for name, value in load_encoder(place)[0].state_dict().items()} for place in stages_of(path))
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert not any(name.endswith(("weight", "bias")) for name in moved)
    assert any("running" in name for name in moved) == (batch_norm == "moves")
    one, two = (tensors(place) for place in stages_of(path))
    targets = [name for name in one if name.startswith("networks.target.encoder.") and "running" in name]
    assert targets and all(torch.equal(one[name], two[name]) == (batch_norm == "fixed") for name in targets)
    again = staged(tmp_path / "again", stages, encoder="dense_small:8-16-32-32-48")
    assert weights(again) == weights(path)


def test_a_training_of_its_own_has_nothing_new_to_train(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no stage stands before"):
        sv.pretrain(pictures(), out=tmp_path / "run", epochs=1, batch_size=16, sets={"trains": "new"}, threads=1, quiet=True)


def test_nothing_new_to_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="adds nothing to the encoder"):
        staged(tmp_path / "run", (Stage(16, epochs=1.0), Stage(16, epochs=1.0, trains="new")))


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ("dense_small:8-16-32-32-32", "dense_small:8-24-32-40-48-48"),
        pytest.param("resnet18", "resnet34", marks=pytest.mark.slow),
    ],
)
def test_an_encoder_grows_and_the_whole_method_computes_what_it_did(small: str, large: str, tmp_path: Path) -> None:
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        real = single._train

        def train(parts: Any, *rest: Any) -> None:
            if parts.config.encoder == large:
                seen["grown"] = parts.state.networks
                raise Killed
            real(parts, *rest)
            seen["before"] = parts.state.networks

        patch.setattr(single, "_train", train)
        with pytest.raises(Killed):
            staged(
                tmp_path / "run", (Stage(16, epochs=1.0), Stage(16, epochs=1.0, encoder=large)), encoder=small, method="byol"
            )
    views = torch.randn(8, 3, 16, 16)
    for net in seen.values():
        net.eval()
    with torch.no_grad():
        for side in ("online", "target"):
            one, two = (getattr(seen[when], side)(views) for when in ("before", "grown"))
            assert torch.allclose(one, two, atol=1e-5 * float(one.abs().max())), side
        predicted = [net.predictor(net.online(views)) for net in (seen["before"], seen["grown"])]
    assert torch.allclose(*predicted, atol=1e-4)
    assert weights(
        staged(tmp_path / "run", (Stage(16, epochs=1.0), Stage(16, epochs=1.0, encoder=large)), encoder=small, method="byol")
    )


def test_an_encoder_that_is_no_continuation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be grown into"):
        staged(tmp_path / "run", (Stage(16, epochs=1.0), Stage(16, epochs=1.0, encoder="mobilenetv3_small_050")))


class Averages(torch.nn.Module):
    """A module of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layer(images.mean((2, 3)))
        return features


@pytest.mark.parametrize(
    ("last", "more", "wanted"),
    [
        ({"encoder": "resnet81"}, {}, "resnet81"),
        ({"encoder": "mobilenetv3_small_050"}, {}, "cannot be grown into"),
        ({"depth": 9}, {}, "depth is 9"),
        ({"depth": 1}, {"depth": 3}, "does not go on as that of the stage before"),
        ({"trains": "new"}, {}, "adds nothing to the encoder"),
        ({"subset": Subset(pictures=99)}, {}, "99 pictures of arrays are asked for"),
        ({"subset": Subset(pictures=10)}, {}, "its subset has 10 pictures"),
        ({"subset": Subset(pictures=10), "batch_size": 12}, {"batch_size": None}, "its subset has 10 pictures"),
        ({"depth": 2}, {"encoder": Averages()}, "a module of your own"),
        ({}, {"encoder": "custom:Averages"}, "pass it"),
    ],
)
def test_what_would_end_the_last_stage_is_said_before_the_first(
    last: dict[str, Any], more: dict[str, Any], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "_train", lambda *_: pytest.fail("it has begun to train"))
    given = {"encoder": "dense_small:8-16-16", **more}
    with pytest.raises((UsageError, DataError), match=wanted):
        staged(tmp_path / "run", (Stage(16, epochs=1.0), Stage(16, epochs=1.0, **last)), **given)
    assert not (tmp_path / "run" / "run.toml").exists()


def test_a_truncated_encoder_is_trained_saved_and_used(tmp_path: Path) -> None:
    small = {"epochs": 1, "batch_size": 16, "threads": 1, "quiet": True}
    run = sv.pretrain(pictures(), encoder="dense_small", depth=3, out=tmp_path / "run", **small)
    assert sv.embed(run.path, pictures(), threads=1).shape == (48, 128)
    assert load_encoder(run.path)[1].depth == 3


def separable(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) % 3
    noise = np.random.default_rng(1).normal(0, 30, (n, 16, 16, 3))
    return np.clip(60 + 60 * labels[:, None, None, None] + noise, 0, 255).astype(np.uint8), labels


def test_the_baseline_with_labels_goes_through_the_same_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallview.evaluation import labelled

    stages = (Stage(8, epochs=2.0, depth=4), Stage(16, epochs=1.0, depth=5))
    path = staged(tmp_path / "run", stages, separable(), encoder="dense_small:8-16-32-32-48")
    seen: list[tuple[int, int, int]] = []
    real = labelled.train_with_labels

    def watched(encoder: Any, config: Any, part: Any, **given: Any) -> Any:
        started = [v.clone() for v in encoder.state_dict().values()]
        net = real(encoder, config, part, **given)
        seen.append((given["size"], config.features, given["steps"]))
        if len(seen) == 2:  # it began with what the first stage had come to
            assert all(torch.equal(a, b) for a, b in zip(started, ended[0], strict=False))
        ended.append([v.clone() for v in net.encoder.state_dict().values()])
        return net

    ended: list[list[torch.Tensor]] = []
    monkeypatch.setattr(labelled, "train_with_labels", watched)
    rows = sv.evaluate(path, separable(), separable(), "supervised", threads=1, leaks=False)
    assert seen == [(8, 32, 6), (16, 48, 3)]
    assert "6 steps at 8 px, 3 steps" in rows[0].protocol


def test_a_truncated_encoder_is_fine_tuned_as_the_whole_after_a_warm_up(tmp_path: Path) -> None:
    run = sv.pretrain(
        separable(), depth=4, out=tmp_path / "run", epochs=1, batch_size=16, threads=1, quiet=True, encoder="dense_small"
    )
    sets = {
        "finetune.epochs": 2,
        "finetune.batch_size": 20,
        "finetune.grow": "whole",
        "finetune.warm_epochs": 1,
        "finetune.size": 24,
    }
    (row,) = sv.evaluate(run.path, separable(), separable(), "finetune", sets=sets, threads=1, leaks=False)
    assert "before that 3 steps of what was added to the 4 stages" in row.protocol and "views of 24 px" in row.protocol
    assert row.value > 40.0
    plain = {name: value for name, value in sets.items() if "grow" not in name}
    (kept,) = sv.evaluate(run.path, separable(), separable(), "finetune", sets=plain, threads=1, leaks=False)
    assert "added" not in kept.protocol


def test_stages_of_small_pictures_end_with_statistics_of_the_runs_own_size(tmp_path: Path) -> None:
    path = staged(tmp_path / "run", "8x2", size=16)
    (stage,) = stages_of(path)
    assert (load_encoder(path)[1].size, load_encoder(stage)[1].size) == (16, 8)
    small, large = (load_encoder(place)[0].state_dict() for place in (stage, path))
    differ = {name.rsplit(".", 1)[1] for name in small if not torch.equal(small[name], large[name])}
    assert differ == {"running_mean", "running_var", "num_batches_tracked"}
    labels = np.arange(48) % 3
    rows = sv.evaluate(path, (pictures(), labels), (pictures(), labels), "knn", threads=1, leaks=False)
    assert "one centre view 16 px" in rows[0].protocol


def test_pictures_left_out_of_a_subset_are_left_out_of_the_statistics_too(tmp_path: Path) -> None:
    part = read_subset("50%")
    path = staged(tmp_path / "run", "8x1", size=16, subset=part, encoder="dense_small:8-16")
    kept = json.loads((stages_of(path)[0] / "subset.json").read_text())["positions"]
    other = pictures()
    other[np.setdiff1d(np.arange(48), kept)] = 0
    assert weights(staged(tmp_path / "other", "8x1", other, size=16, subset=part, encoder="dense_small:8-16")) == weights(path)


def test_an_encoder_is_judged_at_another_size_when_that_is_asked_for(whole: Path) -> None:
    labels = np.arange(48) % 3
    rows = sv.evaluate(whole, (pictures(), labels), (pictures(), labels), "knn", size=12, threads=1, leaks=False)
    assert "one centre view 12 px" in rows[0].protocol


def test_views_that_never_grow_end_with_statistics_of_the_runs_own_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"epochs": 2, "batch_size": 16, "threads": 1}
    half = sv.pretrain(pictures(), resolution="0.5", out=tmp_path / "half", **given).path
    assert "the last views had 8 px: for pictures of 16 px" in capsys.readouterr().err
    trained = {name[len("networks.online.encoder.") :]: v for name, v in tensors(half).items() if "online.encoder" in name}
    differ = {
        name.rsplit(".", 1)[1] for name, v in load_encoder(half)[0].state_dict().items() if not torch.equal(v, trained[name])
    }
    assert differ == {"running_mean", "running_var", "num_batches_tracked"}
    grown = sv.pretrain(pictures(), resolution="Steps((0.5, 1.0), (0.7,))", out=tmp_path / "grown", **given).path
    assert "the last views had" not in capsys.readouterr().err and load_encoder(grown)[1].size == 16
