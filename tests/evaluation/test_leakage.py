"""Test pictures that the training part has as well: found, however they were changed, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from smallview.evaluation.bench import Labeled
from smallview.evaluation.leakage import Leaks, find_leaks


def textured(n: int, seed: int, side: int = 32) -> np.ndarray:
    """Smooth gray pictures with details, as photographs are."""
    random = np.random.default_rng(seed)
    coarse = ndimage.zoom(random.normal(size=(n, 4, 4)), (1, side / 4, side / 4), order=1)
    fine = ndimage.gaussian_filter(random.normal(size=(n, side, side)), (0, 1, 1))
    pictures = coarse + 0.8 * fine
    low, high = pictures.min((1, 2), keepdims=True), pictures.max((1, 2), keepdims=True)
    return 0.1 + 0.8 * (pictures - low) / (high - low)


class Bare:
    def __init__(self, n: int, channels: int = 1) -> None:
        self.n, self.channels = n, channels

    def __len__(self) -> int:
        return self.n


def found(train: np.ndarray, test: np.ndarray, blind: bool = False) -> Leaks:
    def flat(pictures: np.ndarray) -> Tensor:
        return torch.from_numpy(pictures.reshape(len(pictures), -1).astype(np.float32))

    parts = [
        Labeled(Bare(len(p), p.shape[1] if p.ndim == 4 else 1), None, name, names=[f"{i}.jpg" for i in range(len(p))])
        for p, name in ((train, "a"), (test, "b"))
    ]
    features = [torch.ones(len(p), 2) if blind else flat(p) for p in (train, test)]
    return find_leaks(*parts, flat(train), flat(test), *features)


@pytest.mark.parametrize("change", ["none", "brighter", "contrast", "mirrored", "noise", "moved", "jpeg"])
@pytest.mark.parametrize("blind", [False, True])
def test_planted_pictures_are_found(change: str, blind: bool) -> None:
    train, test = textured(200, 0), textured(50, 1)
    copy = train[17].copy()
    random = np.random.default_rng(5)
    copy = {
        "none": copy,
        "brighter": copy * 0.8 + 0.15,
        "contrast": 0.5 + 0.6 * (copy - 0.5),
        "mirrored": copy[:, ::-1],
        "noise": copy + random.normal(0, 0.01, copy.shape),
        "moved": ndimage.shift(copy, (0.3, 0.2), mode="nearest"),
        "jpeg": np.round(copy * 24) / 24,
    }[change]
    test[3] = copy
    leaks = found(train, test, blind)
    assert [(i, j) for i, j, _ in leaks.pairs] == [(3, 17)]
    assert leaks.names == (("b/3.jpg", "a/17.jpg"),) and "1 of 50" in leaks.sentence("a", "b")
    assert [record["alike"] > 0.8 for record in leaks.records()] == [True]


def test_other_pictures_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(textured(300, 0), textured(200, 1)).count == 0
    # two skies: the same gradient, other details
    ramp = np.linspace(0.2, 0.9, 32)[None, :, None] * np.ones((1, 32, 32))
    random = np.random.default_rng(0)
    skies = ramp + random.normal(0, 0.004, (40, 32, 32))
    assert found(skies[:20], skies[20:]).count == 0


@pytest.mark.parametrize(("recoloured", "mirrored", "wanted"), [(False, False, 1), (False, True, 1), (True, False, 0)])
def test_one_outline_in_other_colours_is_no_copy(recoloured: bool, mirrored: bool, wanted: int) -> None:
    """Two pairs of trousers: details that agree by 0.8 to 0.9, and colours that lie elsewhere."""
    random = np.random.default_rng(0)
    gray, tint = textured(60, 0), 0.2 * textured(60, 7)
    train = np.stack([gray + tint, gray - tint / 2, gray - tint / 2], 1)
    test = np.stack([textured(20, 1)] * 3, 1)
    own = 0.2 * textured(1, 9)[0] if recoloured else tint[17]
    outline = gray[17] + random.normal(0, 0.022, (32, 32))
    test[3] = np.stack(
        [outline - own / 2, outline - own / 2, outline + own] if recoloured else [outline + own, *[outline - own / 2] * 2]
    )
    test[3] = test[3][..., ::-1] if mirrored else test[3]
    leaks = found(train, test)
    assert leaks.count == wanted
    if wanted:
        assert 0.8 <= leaks.pairs[0][2] < 0.9, leaks.pairs


def test_a_whole_part_that_leaks_is_all_found() -> None:
    pictures = textured(60, 3)
    assert found(pictures, pictures[::-1].copy()).count == 60


def test_flat_pictures_that_are_equal_count_and_do_not_fail() -> None:
    flat = np.full((3, 8, 8), 0.5)
    assert found(flat, np.concatenate([flat[:1], flat[:1] + 0.2])).count in (1, 2)
