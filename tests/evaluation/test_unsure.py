"""How unsure a probe is: against a slow loop from the definition, and that it finds what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smallview.evaluation.closeness import directions
from smallview.evaluation.lowshot import RIDGE_PENALTIES, SHARPNESS, Ridge, choose_penalty
from smallview.evaluation.unsure import doubt_of, enough


def between(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features of two classes and of `n` pictures between them, the labels of some, which ones lie between)."""
    random = np.random.default_rng(seed)
    side = np.concatenate([np.repeat([-1.0, 1.0], n), random.uniform(-0.1, 0.1, n)])
    x = np.concatenate([3 * side[:, None], random.normal(0, 0.4, (3 * n, 9))], 1).astype(np.float32)
    labels = np.full(3 * n, -1)
    labels[:10], labels[n : n + 10] = 0, 1
    return x, labels, np.arange(3 * n) >= 2 * n


def unsure(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return doubt_of(features, labels).unsure


def slow(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(unsure, weights, right) by definition: a system of equations for each picture left out, each penalty and each sharpness."""
    rows = directions(features).double().numpy()
    known = np.flatnonzero(labels >= 0)
    names = np.unique(labels[known])
    mean = rows[known].mean(0)
    scaled = (rows - mean) / np.sqrt(np.square(rows[known] - mean).mean())
    x, y = scaled[known], (labels[known][:, None] == names).astype(float)
    size = np.square(x).sum() / len(x)

    def fitted(x: np.ndarray, y: np.ndarray, z: np.ndarray, penalty: float) -> np.ndarray:
        wide = np.concatenate([x, np.ones((len(x), 1))], 1)
        ridge = np.diag([penalty * size] * x.shape[1] + [0.0])
        return np.append(z, 1.0) @ np.linalg.solve(wide.T @ wide + ridge, wide.T @ y)

    def left_out(penalty: float) -> np.ndarray:
        return np.stack([fitted(np.delete(x, i, 0), np.delete(y, i, 0), x[i], penalty) for i in range(len(x))])

    def softmax(scores: np.ndarray) -> np.ndarray:
        raised = np.exp(scores - scores.max(1, keepdims=True))
        return raised / raised.sum(1, keepdims=True)

    votes = y[:, y.sum(0) > 1].sum(1) > 0
    penalty = choose_penalty(
        Ridge(torch.from_numpy(x), torch.from_numpy(y.argmax(1)), y.shape[1]), torch.from_numpy(y.argmax(1))
    )
    assert penalty in RIDGE_PENALTIES  # how it is chosen is tested with few labels
    scores = left_out(penalty)
    losses = [-np.log(softmax(sharp * scores)[np.arange(len(y)), y.argmax(1)][votes]).mean() for sharp in SHARPNESS]
    sharp = SHARPNESS[int(np.argmin(losses))]
    each = softmax(sharp * np.stack([fitted(x, y, row, penalty) for row in scaled]))
    rarity = sum(each[:, k] / y[:, k].sum() for k in range(len(names)))
    each.sort(1)
    margin = each[:, -1] - each[:, -2]
    return 1 - margin, np.sqrt((1 - margin) * rarity), float(np.mean(votes & (scores.argmax(1) == y.argmax(1))))


@pytest.mark.parametrize(("classes", "features", "told"), [(2, 3, 12), (3, 40, 20), (5, 12, 40)])
def test_it_is_the_margin_of_a_probe_that_leaves_each_out(classes: int, features: int, told: int) -> None:
    random = np.random.default_rng(classes)
    y = np.arange(80) % classes
    x = (2 * np.eye(max(classes, features))[y, :features] + random.normal(size=(80, features))).astype(np.float32)
    labels = np.where(np.arange(80) < told, y, -1)
    labels[told - 1] = 7  # a class with one picture, and numbers with gaps between them
    doubt, (margin, weights, right) = doubt_of(x, labels), slow(x, labels)
    np.testing.assert_allclose(doubt.unsure, margin, atol=2e-4)
    assert abs(doubt.right - right) < 1e-9 and right < 1
    np.testing.assert_allclose(doubt.weights, weights, atol=0.01)  # the least doubt counts as SURE


def test_pictures_between_the_classes_are_the_unsure_ones() -> None:
    x, labels, middle = between()
    found = unsure(x, labels)
    assert found.dtype == np.float32 and (found >= 0).all() and (found <= 1).all()
    assert middle[np.argsort(-found)[:60]].mean() > 0.95


def test_a_class_with_few_labels_weighs_more() -> None:
    x, labels, middle = between()
    even = doubt_of(x, labels).weights
    labels[2:10] = -1
    few = doubt_of(x, labels).weights
    ends = [np.flatnonzero(~middle)[part] for part in (slice(10, 60), slice(70, 120))]
    ratio = [float(np.median(weights[ends[0]]) / np.median(weights[ends[1]])) for weights in (even, few)]
    assert 0.5 < ratio[0] < 2 and ratio[1] > 2 * ratio[0]


def test_labels_without_a_meaning_leave_all_of_it_unsure() -> None:
    x, labels, middle = between()
    shuffled = labels.copy()
    shuffled[labels >= 0] = np.random.default_rng(1).permutation(labels[labels >= 0])
    assert unsure(x, shuffled)[~middle].mean() > 0.5 > 0.1 > unsure(x, labels)[~middle].mean()


def test_neither_scale_nor_names_of_classes_matter_and_a_blank_picture_is_unsure() -> None:
    x, labels, _ = between()
    found = unsure(x, labels)
    np.testing.assert_allclose(unsure(x * 100, np.where(labels >= 0, 9 - labels, -1)), found, atol=1e-3)
    x[-1] = 0
    assert unsure(x, labels)[-1] > 0.5


@pytest.mark.parametrize("labels", [[], [-1, -1, -1], [0, 0, 0], [0, 0, 1], [0, 1, 2], [3, 3, -1]])
def test_too_few_labels_are_refused(labels: list[int]) -> None:
    assert not enough(np.array(labels, np.int64))
    with pytest.raises(ValueError, match="fewer than two classes"):
        unsure(np.eye(max(1, len(labels)), 4, dtype=np.float32), np.array(labels, np.int64))
