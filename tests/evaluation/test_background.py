"""Backgrounds that go with the class, and do not; objects that stay what they are."""

from __future__ import annotations

import numpy as np
import pytest

from smallview.errors import DataError
from smallview.evaluation.background import background_shift, paste


def objects(n: int, classes: int = 4, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    made = np.zeros((n, side, side), np.uint8)
    made[:, 3:9, 3:9] = random.integers(1, 256, (n, 6, 6))
    return made, np.arange(n) % classes


def photographs(m: int = 12) -> list[np.ndarray]:
    """Each of one colour, so that a background tells where it came from."""
    return [np.full((40, 50, 3), (20 * i, 255 - 20 * i, 7), np.uint8) for i in range(m)]


def source(picture: np.ndarray) -> int:
    return int(picture[0, 0, 0]) // 20


def test_classes_share_no_photograph_and_objects_stay() -> None:
    things, labels = objects(400)
    made = paste(things, labels, photographs(), correlation=1.0, seed=0, purpose="train", size=16)
    used = {label: {source(p) for p in made[labels == label]} for label in range(4)}
    assert all(len(found) == 3 for found in used.values()) and len(set.union(*used.values())) == 12
    front = things > 0
    inside = made[:, 2:14, 2:14]
    assert np.array_equal(inside[front], np.repeat(things[front][:, None], 3, 1))
    assert len(np.unique(inside[~front].reshape(-1, 3), axis=0)) <= 12


def test_the_share_that_goes_with_the_class_is_the_correlation() -> None:
    things, labels = objects(2000)
    own = paste(things[:400], labels[:400], photographs(), correlation=1.0, seed=0, purpose="train", size=16)
    of_class = {label: {source(p) for p in own[labels[:400] == label]} for label in range(4)}
    shift = background_shift((things, labels), (things[:800], labels[:800]), photographs(), correlation=0.8, seed=0, size=16)

    def share(part: tuple[np.ndarray, np.ndarray]) -> float:
        return float(np.mean([source(p) in of_class[int(label)] for p, label in zip(*part, strict=True)]))

    assert share(shift.train) == pytest.approx(0.8 + 0.2 / 4, abs=0.03)
    assert share(shift.same) == pytest.approx(0.8 + 0.2 / 4, abs=0.05)
    assert share(shift.shuffled) == pytest.approx(1 / 4, abs=0.05)
    assert np.array_equal(shift.same[1], shift.shuffled[1])


def test_a_test_part_without_the_last_class_has_the_same_photographs() -> None:
    things, labels = objects(200)
    some = labels < 3
    whole = background_shift((things, labels), (things, labels), photographs(), correlation=1.0, size=16)
    part = background_shift((things, labels), (things[some], labels[some]), photographs(), correlation=1.0, size=16)
    for label in range(3):
        used = {source(p) for p in whole.train[0][labels == label]}
        assert {source(p) for p in part.same[0][part.same[1] == label]} <= used


def test_picture_i_is_a_function_of_seed_purpose_and_i() -> None:
    things, labels = objects(30)
    options = {"correlation": 0.5, "size": 16}
    whole = paste(things, labels, photographs(), seed=3, purpose="train", **options)
    assert np.array_equal(paste(things[:9], labels[:9], photographs(), seed=3, purpose="train", **options), whole[:9])
    for other in ({"seed": 4, "purpose": "train"}, {"seed": 3, "purpose": "test"}):
        assert not np.array_equal(paste(things, labels, photographs(), **other, **options), whole)


def test_patches_are_cut_everywhere_and_small_photographs_enlarged() -> None:
    ramp = np.stack([np.arange(100, dtype=np.uint8)] * 80)[..., None].repeat(3, 2)
    things, labels = objects(200, classes=1)
    made = paste(things, labels, [ramp], correlation=1.0, seed=0, purpose="x", size=16)
    starts = made[:, 0, 0, 0]
    assert starts.min() < 15 and starts.max() > 50
    tiny = paste(things[:3], labels[:3], [np.full((5, 6, 3), 9, np.uint8)], correlation=1.0, seed=0, purpose="x", size=16)
    assert (tiny[:, 0, 0] == 9).all()


def test_refusals() -> None:
    things, labels = objects(8)
    options = {"correlation": 1.0, "seed": 0, "purpose": "x"}
    with pytest.raises(DataError, match="3 photographs for 4 classes"):
        paste(things, labels, photographs(3), **options)
    with pytest.raises(DataError, match="at most 8 pixels"):
        paste(things, labels, photographs(), size=8, **options)
    with pytest.raises(DataError, match=r"wanted \[h, w, 3\]"):
        paste(things, labels, [np.zeros((9, 9), np.uint8)] * 4, **options)
    with pytest.raises(DataError, match="wanted 0 to 1"):
        paste(things, labels, photographs(), correlation=2.0, seed=0, purpose="x")
