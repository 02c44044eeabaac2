"""Dense probes: IoU by a slow loop, planted places found, masks read as they are meant, and no label in the first component."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from smallview.errors import DataError
from smallview.evaluation.bench import Bench, Contestant, Labeled, pixels
from smallview.evaluation.dense import Dense, confusion, foreground_of, iou, majority
from smallview.evaluation.features import Judged, weights_hash
from smallview.evaluation.judge import judge
from smallview.evaluation.masks import read_masks
from smallview.networks.encoders import EncoderConfig, build_encoder

Pack = Callable[..., Any]


def test_iou_is_the_slow_loop() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 4, (3, 9, 7)), random.integers(0, 4, (3, 9, 7))
    truth[random.random(truth.shape) < 0.2] = 255
    truth[truth == 3], predicted[predicted == 3] = 0, 0  # class 3 is in neither
    mean, each = iou(confusion(torch.from_numpy(predicted), torch.from_numpy(truth), 4))
    slow = []
    for k in range(3):
        both = sum(t == k and p == k for t, p in zip(truth.flat, predicted.flat, strict=True))
        any_ = sum(t != 255 and (t == k or p == k) for t, p in zip(truth.flat, predicted.flat, strict=True))
        slow.append(100 * both / any_)
    assert each[:3] == pytest.approx(slow, abs=1e-3) and np.isnan(each[3])
    assert mean == pytest.approx(np.mean(slow), abs=1e-3)


def test_majority_of_places() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.int64)
    mask[0, :2, :2] = torch.tensor([[1, 1], [1, 2]])
    mask[0, 2:, 2:] = 255
    mask[0, 0, 2:] = 2
    mask[0, 1, 2] = 2
    assert majority(mask, 3, 2, 2).tolist() == [[[1, 2], [0, 255]]]


class Planted(nn.Module):
    """A map whose first numbers are the colour of each place, scaled down; nothing is learned."""

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.pool, self.blind = nn.AvgPool2d(4), blind
        self.register_buffer("mix", torch.randn(8, 3, 1, 1, generator=torch.Generator().manual_seed(0)))

    def forward_features(self, images: Tensor) -> Tensor:
        maps = torch.nn.functional.conv2d(self.pool(images), self.mix)
        return torch.sin(91.0 * maps) if self.blind else maps

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images).mean((2, 3))


def scenes(n: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A square of class 1 or 2 by its colour, in the middle of a background of class 0; noise everywhere."""
    random = np.random.default_rng(seed)
    pictures, masks = [], []
    for i in range(n):
        height, width = (32, 32) if i % 2 else (32, 40)
        mask = np.zeros((height, width), np.uint8)
        top, left = random.integers(4, 12, 2)
        mask[top : top + 16, left : left + 16] = 1 + i % 2
        colour = np.array([[40, 40, 40], [200, 60, 60], [60, 200, 60]])[mask]
        pictures.append(np.clip(colour + random.normal(0, 6, colour.shape), 0, 255).astype(np.uint8))
        masks.append(mask)
    return pictures, masks


def parts(packed: Pack) -> tuple[Labeled, Labeled]:
    out = []
    for n, seed in ((12, 0), (8, 1)):
        pictures, masks = scenes(n, seed)
        out.append(Labeled(packed(pictures), None, f"scenes {seed}", masks=masks))
    return out[0], out[1]


CONFIG = EncoderConfig("custom:Planted", "standard", 3, 16, 8, (0.3,) * 3, (0.2,) * 3)


def test_planted_places_are_told_apart_and_blind_ones_are_not(packed: Pack) -> None:
    bench = Bench(*parts(packed), train_size=16)
    seen = {f.metric: f.value for f in Dense(side=64).measure(Contestant("encoder", Planted().eval(), CONFIG, "x"), bench)}
    blind = {f.metric: f.value for f in Dense(side=64).measure(Contestant("encoder", Planted(True).eval(), CONFIG, "y"), bench)}
    for metric in ("dense linear mIoU %", "dense neighbours mIoU %"):
        assert seen[metric] > 80.0 and blind[metric] < 55.0, (seen, blind)
    assert seen["dense first component IoU %"] > 75.0 > blind["dense first component IoU %"]


def test_training_labels_alone_decide_the_probes_and_none_the_component(packed: Pack) -> None:
    train, test = parts(packed)
    who = Contestant("encoder", Planted().eval(), CONFIG, "x")
    wrong = replace(train, masks=[np.where(mask > 0, 3 - mask, mask).astype(np.uint8) for mask in train.masks])
    right = {f.metric: f.value for f in Dense(side=64).measure(who, Bench(train, test))}
    swapped = {f.metric: f.value for f in Dense(side=64).measure(who, Bench(wrong, test))}
    assert swapped["dense linear mIoU %"] < right["dense linear mIoU %"] - 30.0
    assert swapped["dense first component IoU %"] == right["dense first component IoU %"]


def test_places_are_bounded_even_where_pictures_are_more(packed: Pack) -> None:
    train, test = parts(packed)
    who = Contestant("encoder", Planted().eval(), CONFIG, "x")
    figures = Dense(side=64, places=10).measure(who, Bench(train, test))  # 12 pictures
    assert figures[0].settings["places"] == 10


def test_people_stand_out_on_photos(packed: Pack) -> None:
    root = os.environ.get("SMALLVIEW_DATA")
    if root is None or not (Path(root) / "people-masks").is_dir():
        pytest.skip("SMALLVIEW_DATA is unset or holds no people-masks/: dense probes see no photos")
    spec: Any = importlib.util.spec_from_file_location("load", Path(root) / "load.py")
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    both = []
    for pairs in (load.people_masks()[:160:8], load.people_masks()[160:240:8]):
        read = [load.read_pair(*pair) for pair in pairs]
        pictures = [np.ascontiguousarray(picture[::4, ::4]) for picture, _ in read]
        masks = [np.ascontiguousarray(np.asarray(truth)[::4, ::4] > 0).astype(np.uint8) for _, truth in read]
        both.append(Labeled(packed(pictures), None, "people", masks=masks))
    net, config = build_encoder("dense_small", size=32)
    config = replace(config, mean=(0.5,) * 3, std=(0.25,) * 3)
    before = weights_hash(net)
    found = {
        f.metric: f.value
        for f in Dense(places=2_000).measure(Contestant("untrained", net.eval(), config, "x"), Bench(*both, train_size=32))
    }
    truth = torch.cat([torch.from_numpy(mask).flatten() for mask in both[1].masks or ()])
    assert found["dense linear mIoU %"] > iou(confusion(torch.zeros_like(truth), truth, 2))[0]  # of the background everywhere
    assert 0.0 < found["dense first component IoU %"] < 100.0 and weights_hash(net) == before


def test_corrupted_places_are_told_apart_less(packed: Pack) -> None:
    bench, who = Bench(*parts(packed), train_size=16), Contestant("encoder", Planted().eval(), CONFIG, "x")
    dense = Dense(side=64, corruptions=("contrast", "brightness", "elastic_transform"), severities=(5,))
    found = {f.metric: f for f in dense.measure(who, bench)}
    clean, corrupted = found["dense linear mIoU %"], found["dense corrupted linear mIoU %"]
    assert set(corrupted.settings["by_corruption"]) == {"contrast", "brightness"} and corrupted.value < clean.value - 10.0
    with pytest.raises(ValueError, match="no corruption is called"):
        Dense(corruptions=("mist",))


def test_floors_and_rows(packed: Pack) -> None:
    net, config = build_encoder("dense_small", size=16)
    config = replace(config, mean=(0.5,) * 3, std=(0.25,) * 3)
    rows = judge(Judged(net.eval(), config, "small", 0, {}), *parts(packed), ("dense",))
    assert [row.metric for row in rows] == ["dense linear mIoU %", "dense neighbours mIoU %", "dense first component IoU %"]
    assert all(row.floor_pixels is not None and row.floor_untrained is not None and "64 x 64" in row.protocol for row in rows)
    assert rows[0].floor_pixels > 60.0  # colour tells these classes


def test_the_sign_of_the_foreground_needs_no_label() -> None:
    board = -torch.ones(3, 8, 8)
    board[:, 2:6, 2:6] = 1.0
    assert torch.equal(foreground_of(board) > 0, foreground_of(-board) > 0)


def test_parts_without_masks_are_refused(packed: Pack) -> None:
    train, test = parts(packed)
    who = pixels(CONFIG, train)
    with pytest.raises(DataError, match="--train-masks"):
        Dense().measure(who, Bench(replace(train, masks=None), test))
    empty = [np.zeros_like(mask) for mask in train.masks]
    with pytest.raises(DataError, match="one class"):
        Dense().measure(who, Bench(replace(train, masks=empty), replace(test, masks=[np.zeros_like(m) for m in test.masks])))


def named(packed: Pack, names: list[str]) -> Labeled:
    return Labeled(packed([np.zeros((4, 4, 3), np.uint8)] * len(names)), None, "photos", names=names)


def test_masks_in_a_folder_are_found_by_name(packed: Pack, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).save(tmp_path / "deep" / "a.png")
    Image.fromarray(np.full((2, 2, 3), 255, np.uint8)).save(tmp_path / "b.bmp")
    masks = read_masks([tmp_path], [named(packed, ["deep/a.jpg", "x/b.jpeg"])], ["--train-masks"])[0]
    assert masks[0].tolist() == [[0, 1], [1, 0]] and masks[1].tolist() == [[1, 1], [1, 1]]
    with pytest.raises(DataError, match=r"no mask for c.jpg"):
        read_masks([tmp_path], [named(packed, ["c.jpg"])], ["--train-masks"])[0]
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"c.png cannot be read"):
        read_masks([tmp_path], [named(packed, ["c.jpg"])], ["--train-masks"])[0]
    with pytest.raises(DataError, match="there is no folder"):
        read_masks([tmp_path / "none"], [named(packed, ["c.jpg"])], ["--train-masks"])[0]


def test_what_255_means_is_decided_over_both_parts(packed: Pack) -> None:
    one, two = np.array([[0, 1, 255]], np.uint8), np.array([[0, 255, 255]], np.uint8)
    part = named(packed, ["a"])
    train, test = read_masks([[one], [two]], [part, part], ["train", "test"])
    assert train[0].tolist() == [[0, 1, 255]] and test[0].tolist() == [[0, 255, 255]]


def test_masks_as_arrays(packed: Pack) -> None:
    part = named(packed, ["a", "b"])
    classes = [np.array([[0, 1], [2, 255]], np.uint8), np.array([[0, 0], [0, 0]], np.int64)]
    assert read_masks([classes], [part], ["masks"])[0][0].tolist() == [[0, 1], [2, 255]]
    assert read_masks([[np.eye(2, dtype=bool)] * 2], [part], ["masks"])[0][0].tolist() == [[1, 0], [0, 1]]
    noisy = np.concatenate([np.arange(20), np.arange(235, 256)]).astype(np.uint8)[None]
    assert read_masks([[noisy] * 2], [part], ["masks"])[0][0].sum() == 21
    for given, told in (
        ([classes[0]], "1 masks for 2"),
        ([np.zeros((2, 2, 3))] * 2, "float64"),
        ([np.full((2, 2), -1)] * 2, "0 to 255"),
        (3, "a folder"),
    ):
        with pytest.raises(DataError, match=told):
            read_masks([given], [part], ["masks"])[0]
