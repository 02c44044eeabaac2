"""Judging from a person's side: folders, names, foreign weights, transfer, shifted parts, masks; and what cannot be judged, in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import smallview
from smallview.assess import opened, train_supervised
from smallview.errors import DataError, SmallviewError, UsageError
from smallview.networks.encoders import build_encoder, load_encoder, save_encoder


def data(n: int, seed: int, classes: int = 3, channels: int = 3, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    random, y = np.random.default_rng(seed), np.arange(n) % classes
    x = np.clip(random.normal(60 + 60 * y[:, None, None, None], 30, (n, side, side, channels)), 0, 255).astype(np.uint8)
    return x, y


TRAIN, TEST = data(60, 0), data(30, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("assess") / "run"
    return smallview.pretrain(
        TRAIN[0], "simclr", "dense_small:8-16-32", epochs=1, size=12, batch_size=20, threads=1, out=out, quiet=True
    ).path


def rows(*given: Any, **options: Any) -> list[smallview.Row]:
    return smallview.evaluate(*given, threads=1, **options)


def test_rows_are_added_and_features_are_kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLVIEW_CACHE", str(tmp_path))
    before = len((run / "rows.jsonl").read_text().splitlines()) if (run / "rows.jsonl").exists() else 0
    said: list[str] = []
    first = rows(run, TRAIN, TEST, "knn", say=said.append)
    assert len((run / "rows.jsonl").read_text().splitlines()) == before + 2
    assert sum("features of" in line for line in said) == 6
    said.clear()
    again = rows(run, TRAIN, TEST, "knn", say=said.append)
    assert said == ["knn: encoder"]  # the floors' figures are kept as well
    assert [(r.value, r.floor_pixels, r.floor_untrained) for r in again] == [
        (r.value, r.floor_pixels, r.floor_untrained) for r in first
    ]
    fresh = rows(run, TRAIN, TEST, "knn", cache=False)
    assert [r.value for r in fresh] == [r.value for r in first]


def test_transfer_is_judged_beside_and_gray_becomes_three_channels(run: Path) -> None:
    gray = data(60, 2, channels=1), data(30, 3, channels=1)
    found = rows(run, TRAIN, TEST, "knn", transfer={"gray": gray}, cache=False)
    assert [row.settings["test"] for row in found] == ["arrays", "arrays", "gray test", "gray test"]
    assert found[2].value > 60.0


def test_shifted_parts_go_through_the_same_probe(run: Path) -> None:
    x, y = TEST
    settings = {"robust.corruptions": "(contrast,)", "robust.severities": "(5,)"}
    found = rows(run, TRAIN, TEST, "robust", sets=settings, shifted={"dark": (x // 2, y), "same": TEST}, cache=False)
    values = {row.metric: row.value for row in found}
    assert set(values) == {f"robust {name} top-1 %" for name in ("mean", "clean", "contrast", "dark", "same")}
    assert (
        values["robust same top-1 %"] == values["robust clean top-1 %"]
        and values["robust mean top-1 %"] == values["robust contrast top-1 %"]
    )


def test_without_labels_there_is_label_free_alone(run: Path) -> None:
    found = rows(run, TRAIN[0], TEST[0], "label_free", sets={"label_free.views": "2"}, cache=False)
    assert {row.metric for row in found} >= {"label_free rankme", "label_free lidar"} and all(
        "no label" in row.protocol for row in found
    )
    with pytest.raises(DataError, match=r"--train .* has no labels"):
        rows(run, TRAIN[0], TEST, "knn")
    with pytest.raises(DataError, match=r"label_free wants 16"):
        rows(run, TRAIN[0], TEST[0][:5], "label_free", cache=False)


def test_a_collapsed_encoder_gets_what_can_be_said(run: Path) -> None:
    net, _ = load_encoder(run)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    said: list[str] = []
    found = rows(net, TRAIN[0], TEST[0], "label_free", sets={"label_free.views": "2"}, size=12, cache=False, say=said.append)
    metrics = {row.metric for row in found}
    assert "label_free stability" in metrics and "label_free alpha_req" not in metrics
    assert any("no alpha_req" in line for line in said)


def test_a_leak_is_said_and_written(run: Path) -> None:
    x, y = TEST
    random = np.random.default_rng(0)
    detailed = random.integers(0, 255, (60, 12, 12, 3)).astype(np.uint8)
    leaked = random.integers(0, 255, (30, 12, 12, 3)).astype(np.uint8)
    leaked[4] = detailed[11]
    said: list[str] = []
    found = rows(run, (detailed, TRAIN[1]), (leaked, y), "knn", say=said.append, cache=False)
    assert all(row.settings["near_duplicates"] == 1 for row in found)
    assert any("1 of 30 test pictures" in line and "near_duplicates.jsonl" in line for line in said)
    (record,) = [json.loads(line) for line in (run / "near_duplicates.jsonl").read_text().splitlines()]
    assert (record["test"], record["train"]) == (4, 11)
    assert "near_duplicates" not in rows(run, TRAIN, TEST, "knn", leaks=False, cache=False)[0].settings
    del x


def test_an_encoder_that_was_tuned_after_its_run_is_no_result_of_it(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    net, config = load_encoder(copy)
    with torch.no_grad():
        next(net.parameters()).add_(1e-3)
    save_encoder(net, config, copy / "encoder")
    with pytest.raises(DataError, match="not the one that this run made"):
        rows(copy, TRAIN, TEST, "knn")
    assert rows(copy / "encoder", TRAIN, TEST, "knn", cache=False)  # as what it is


def test_a_module_that_trains_while_it_is_judged_gets_no_row() -> None:
    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 8)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.layer.weight.add_(1e-4)
            out: torch.Tensor = self.layer(images.mean((2, 3)))
            return out

    with pytest.raises(SmallviewError, match="changed while it was judged"):
        rows(Sly(), TRAIN, TEST, "knn", size=12, cache=False)


def test_projector_and_training_come_from_the_run(run: Path) -> None:
    subject = opened(run)
    assert subject.projector is not None and subject.training is not None and subject.training.steps == 3
    found = rows(run, TRAIN, TEST, "layers", cache=False)
    assert [row.metric for row in found if "projector" in row.metric]


def test_weights_of_others(run: Path, tmp_path: Path) -> None:
    net, _ = load_encoder(run)
    torch.save({"state_dict": {f"module.backbone.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "peer.ckpt")
    said: list[str] = []
    found = rows(
        "dense_small:8-16-32", TRAIN, TEST, "knn", weights=tmp_path / "peer.ckpt", size=12, say=said.append, cache=False
    )
    assert "15 of 15 tensors" in said[0] and found[0].settings["encoder"] == "peer"
    few = dict(list(net.state_dict().items())[:2])
    torch.save(few, tmp_path / "few.pth")
    with pytest.raises(UsageError, match=r"2 of 15 tensors.*--weights-coverage 0.13"):
        rows("dense_small:8-16-32", TRAIN, TEST, "knn", weights=tmp_path / "few.pth", size=12)
    assert rows(
        "dense_small:8-16-32", TRAIN, TEST, "knn", weights=tmp_path / "few.pth", size=12, weights_coverage=0.05, cache=False
    )
    # the stem that the file has is taken, whatever the size's rule
    standard, _ = build_encoder("resnet18", size=32, stem="standard")
    assert build_encoder("resnet18", size=32)[1].stem == "small"
    torch.save(standard.state_dict(), tmp_path / "standard.pth")
    assert opened("resnet18", weights=tmp_path / "standard.pth", size=32).config.stem == "standard"


def test_a_supervised_encoder_is_judged_like_any(run: Path, tmp_path: Path) -> None:
    out = train_supervised(run, TRAIN, tmp_path / "labeled", threads=1)
    found = rows(out, TRAIN, TEST, "knn", cache=False)
    assert found[0].seed == 0 and (out / "rows.jsonl").exists()
    again = train_supervised(run, TRAIN, tmp_path / "again", threads=1)
    assert (again / "encoder" / "model.safetensors").read_bytes() == (out / "encoder" / "model.safetensors").read_bytes()
    assert found[0].settings["encoder_sha256"] != rows(run, TRAIN, TEST, "knn", cache=False)[0].settings["encoder_sha256"]
    with pytest.raises(UsageError, match="no finished run"):
        train_supervised(run / "encoder", TRAIN, tmp_path / "none", threads=1)


def test_masks_from_folders(run: Path, tmp_path: Path) -> None:
    for part, n in (("train", 8), ("test", 4)):
        (tmp_path / part).mkdir()
        (tmp_path / f"{part}-masks").mkdir()
        for i in range(n):
            mask = np.zeros((24, 24), np.uint8)
            mask[6:18, 6:18] = 255
            picture = np.where(mask[..., None] > 0, (200, 30, 30), (30, 30, 90)).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / part / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / f"{part}-masks" / f"{i}.png")
    found = rows(
        run,
        tmp_path / "train",
        tmp_path / "test",
        "dense",
        masks=(tmp_path / "train-masks", tmp_path / "test-masks"),
        cache=False,
    )
    assert found[0].metric == "dense linear mIoU %" and found[0].value > 45.0
    with pytest.raises(DataError, match="--train-masks"):
        rows(run, tmp_path / "train", tmp_path / "test", "dense", cache=False)


def class_folders(root: Path, names: tuple[str, ...], n: int = 3) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (14, 14, 3), np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (("cat", "dog"), ("cat", "zebra"), "--test has 1 class that --train has not: zebra; --train has cat, dog"),
        (("cat", "dog"), ("cat", "dog", "owl"), "wanted the same class folders in both"),
    ],
)
def test_class_folders_that_differ(run: Path, tmp_path: Path, train: tuple[str, ...], test: tuple[str, ...], told: str) -> None:
    with pytest.raises(DataError, match=told):
        rows(run, class_folders(tmp_path / "a", train), class_folders(tmp_path / "b", test), "knn")


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        ((TRAIN[0], np.zeros(60, int)), (TEST[0], np.zeros(30, int)), "has 1 class; wanted two or more"),
        ((TRAIN[0], np.where(np.arange(60) < 3, -1, TRAIN[1])), TEST, "3 pictures with a label under 0"),
        (TRAIN, (TEST[0], np.full(30, 7)), "no training picture has 7"),
        ((TRAIN[0], np.eye(3, dtype=int)[TRAIN[1]]), TEST, "wanted the same kind of target"),
        ((TRAIN[0], 1.5 * TRAIN[1]), (TEST[0], np.stack([1.5 * TEST[1]] * 2, 1)), "1 numbers a picture"),
        ((TRAIN[0], np.where(np.arange(60) < 3, np.nan, 1.5 * TRAIN[1])), (TEST[0], 1.5 * TEST[1]), "not finite"),
        ((TRAIN[0], np.arange(120).reshape(60, 2)), TEST, "wanted 0 and 1 for several labels"),
        ((TRAIN[0], 1.5 * TRAIN[1][:40]), (TEST[0], 1.5 * TEST[1]), "40 rows of targets for 60 pictures"),
        ((TRAIN[0][:8], TRAIN[1][:8]), TEST, None),
    ],
)
def test_targets_that_cannot_be_meant(run: Path, train: Any, test: Any, told: str | None) -> None:
    if told is None:  # fewer pictures than neighbours are fine, and fewer than the shots asked for are not
        with pytest.raises(DataError, match=r"lowshot asks for 5 labels of each class and the smallest class .* has 2"):
            rows(run, train, test, "lowshot", sets={"lowshot.per_class": "(5,)"}, cache=False)
        return
    with pytest.raises(DataError, match=told):
        rows(run, train, test, "knn", cache=False)


def test_several_labels_and_numbers_from_an_npz(run: Path, tmp_path: Path) -> None:
    for name, (x, y) in (("train", TRAIN), ("test", TEST)):
        np.savez(tmp_path / f"{name}-many.npz", images=x, labels=np.stack([y == 0, y > 0], 1))
        np.savez(tmp_path / f"{name}-numbers.npz", images=x, labels=(1.5 * y).astype(np.float32))
    many = rows(run, tmp_path / "train-many.npz", tmp_path / "test-many.npz", "linear", cache=False)
    assert many[0].metric == "linear mAP %" and many[0].value > 80.0
    numbers = rows(run, tmp_path / "train-numbers.npz", tmp_path / "test-numbers.npz", "linear", cache=False)
    assert numbers[0].metric == "linear R2" and numbers[0].value > 0.5


def test_features_that_are_not_finite(run: Path) -> None:
    net, config = load_encoder(run)
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    del config
    with pytest.raises(SmallviewError, match="not finite for 60 of 60 pictures"):
        rows(net, TRAIN, TEST, "knn", size=12, cache=False)


def test_several_sets_of_a_row_survive_json(run: Path) -> None:
    row = rows(run, TRAIN, TEST, "linear", cache=False)[0]
    back = smallview.Row(**json.loads(json.dumps(row.as_dict())))
    assert back == replace(row) and back.interval is not None
