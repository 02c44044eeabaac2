"""Encoders as backbones of torchvision's detectors: levels, a fine-tune that learns, and average precision by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from smallview.errors import DataError, UsageError
from smallview.evaluation.features import weights_hash
from smallview.networks.encoders import EncoderConfig, build_encoder
from smallview.output.detection import average_precision, boxes_of, detect, detection_backbone, detector, fine_tune_detector


def encoder(name: str, size: int = 32) -> tuple[nn.Module, EncoderConfig]:
    net, config = build_encoder(name, size=size)
    return net.eval(), replace(config, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("name", ["dense_small", "resnet18", "mobilenetv3_small_050"])
def test_levels_are_a_pyramid(name: str) -> None:
    net, config = encoder(name)
    backbone = detection_backbone(net, config, out_channels=24)
    made = backbone(torch.randn(2, 3, 96, 64))
    shapes = [tuple(level.shape) for level in made.values()]
    assert list(made) == backbone.levels and len(made) >= 2 and all(shape[:2] == (2, 24) for shape in shapes)
    for (_, _, h, w), stride in zip(shapes, backbone.strides, strict=True):
        assert (h, w) == (-(-96 // stride), -(-64 // stride))
    assert backbone.strides == sorted(backbone.strides)
    sum(level.sum() for level in made.values()).backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


def test_a_frozen_backbone_stays() -> None:
    net, config = encoder("dense_small")
    backbone = detection_backbone(net, config, out_channels=8, frozen=True)
    before = weights_hash(net)
    backbone.train()
    sum(level.sum() for level in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert weights_hash(net) == before and all(p.grad is None for p in net.parameters())
    with pytest.raises(UsageError, match="no maps"):
        detection_backbone(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4)), replace(config, size=64))


def test_boxes_of_masks() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[1:4, 2:9], mask[10:18, 20:25] = 255, 1
    mask[19, 0] = 1  # too small
    assert boxes_of(mask, smallest=0.01).tolist() == [[2.0, 1.0, 9.0, 4.0], [20.0, 10.0, 25.0, 18.0]]
    assert boxes_of(np.zeros((4, 4))).shape == (0, 4)


def box(*corners: float) -> np.ndarray:
    return np.array([corners], np.float32)


def test_average_precision_by_hand() -> None:
    real = [np.concatenate([box(0, 0, 10, 10), box(20, 20, 30, 30)]), box(0, 0, 10, 10)]
    found = [
        (np.concatenate([box(0, 0, 10, 10), box(1, 0, 10, 10), box(50, 50, 60, 60)]), np.array([0.9, 0.8, 0.6], np.float32)),
        (box(0, 1, 10, 10), np.array([0.7], np.float32)),
    ]
    # ranked: hit, a second one for the same box, hit, miss; one of three is never found
    assert average_precision(found, real) == pytest.approx(100 * (1 / 3 * 1.0 + 1 / 3 * (2 / 3)), abs=1e-3)
    assert average_precision(found, real, overlap=0.99) == pytest.approx(100 / 3, abs=1e-3)
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert average_precision([nothing, nothing], real) == 0.0
    with pytest.raises(DataError, match="no true box"):
        average_precision([nothing], [np.zeros((0, 4), np.float32)])


def slow_average_precision(found: list, boxes: list, overlap: float) -> float:
    ranked = sorted(((float(s), i, j) for i, (_, scores) in enumerate(found) for j, s in enumerate(scores)), reverse=True)
    taken, points, hits = set(), [], 0
    for rank, (_, i, j) in enumerate(ranked, 1):
        best, which = -1.0, -1
        a = [float(value) for value in found[i][0][j]]
        for k, b in enumerate(boxes[i].astype(float)):
            shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
            if shared / union > best:
                best, which = shared / union, k
        if best >= overlap and (i, which) not in taken:
            taken.add((i, which))
            hits += 1
        points.append((hits / sum(map(len, boxes)), hits / rank))
    area, before = 0.0, 0.0
    for recall in sorted({point[0] for point in points}):
        area += (recall - before) * max(precision for r, precision in points if r >= recall)
        before = recall
    return 100.0 * area


def test_average_precision_is_the_slow_loop() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        corners = random.uniform(0, 20, (4, 3, 2))
        real = list(np.concatenate([corners, corners + random.uniform(5, 15, (4, 3, 2))], 2).astype(np.float32))
        found = [((b[[0, 0, 1, 2]] + random.normal(0, 1, (4, 4))).astype(np.float32), random.random(4)) for b in real]
        for overlap in (0.5, 0.75):
            assert average_precision(found, real, overlap) == pytest.approx(
                slow_average_precision(found, real, overlap), abs=1e-3
            )
    with pytest.raises(DataError, match="one list for each"):
        average_precision(found[:3], real)


def test_levels_are_what_the_stages_gave_even_where_the_next_layer_overwrites_it() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1))
    net.append(nn.Flatten()).eval()
    backbone = detection_backbone(net, EncoderConfig("custom:x", "standard", 3, 64, 8), out_channels=4)
    seen: dict[str, torch.Tensor] = {}
    backbone.pyramid.register_forward_pre_hook(lambda module, inputs: seen.update(inputs[0]))
    images = torch.randn(1, 3, 64, 64)
    backbone(images)
    assert torch.equal(seen["0"], net[0](images)) and bool((seen["0"] < 0).any())


def squares(n: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    random = np.random.default_rng(seed)
    pictures, boxes = [], []
    for _ in range(n):
        picture = random.integers(0, 60, (64, 64, 3)).astype(np.uint8)
        side, (y, x) = int(random.integers(20, 34)), random.integers(0, 30, 2)
        picture[y : y + side, x : x + side] = (230, 200, 60)
        pictures.append(picture)
        boxes.append(box(x, y, x + side, y + side))
    return pictures, boxes


def test_a_short_fine_tune_lowers_the_loss_and_repeats() -> None:
    pictures, boxes = squares(4, 0)
    losses = []
    for steps in (8, 8):
        net, config = encoder("dense_small")
        model = detector(detection_backbone(net, config, out_channels=16), config, side=48)
        losses.append(fine_tune_detector(model, pictures, boxes, steps=steps, batch_size=2, lr=0.03))
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-3:]) < 0.85 * np.mean(losses[0][:3])
    with pytest.raises(DataError, match="0 with any"):
        fine_tune_detector(model, pictures, [np.zeros((0, 4), np.float32)] * 4, steps=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_squares_are_found() -> None:
    torch.manual_seed(0)
    net, config = encoder("dense_small")
    model = detector(detection_backbone(net, config, out_channels=32), config, side=64)
    fine_tune_detector(model, *squares(60, 0), steps=150, batch_size=4, lr=0.02)
    pictures, boxes = squares(20, 1)
    assert average_precision(detect(model, pictures), boxes) > 60.0
