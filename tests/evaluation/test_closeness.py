"""Groups by features, and the order that covers a set: against brute force, and whatever the encoder's scale."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from smallview.errors import DataError
from smallview.evaluation.closeness import close_groups, directions
from smallview.evaluation.coverage import cover


def cloud(n: int = 300, dim: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def planted() -> np.ndarray:
    x = cloud(dim=64)
    x[20], x[40], x[299] = x[3] + 0.02, x[3] - 0.02, x[100] * 1.5
    return x


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 0.0), (50.0, 900.0)])
def test_what_is_close_does_not_depend_on_scale_and_offset_of_features(scale: float, shift: float) -> None:
    found = close_groups((planted() * scale + shift).astype(np.float32))
    assert sorted(group.tolist() for group in found.groups) == [[3, 20, 40], [100, 299]]
    assert all(distances[0] == 0 and (distances < 0.4).all() for distances in found.distances)


def test_every_member_is_close_to_the_first_and_no_chain_grows() -> None:
    angles = np.linspace(0, np.pi, 60)  # each is close to the next, and the ends are opposite
    arc = np.concatenate([np.stack([np.cos(angles), np.sin(angles)], 1), np.stack([np.cos(angles), -np.sin(angles)], 1)])
    x = arc.astype(np.float32)
    found = close_groups(x, 0.9)
    unit = directions(x).numpy()
    assert max(len(group) for group in found.groups) < 25
    for group, distances in zip(found.groups, found.distances, strict=True):
        far = np.linalg.norm(unit[group] - unit[group[0]], axis=1) / found.usual
        assert (np.diff(group) > 0).all() and far == pytest.approx(distances, abs=1e-3) and (far < 0.9).all()


def test_pairs_that_are_just_kept_out_are_the_closest_of_those_outside() -> None:
    found = close_groups(planted())
    unit = directions(planted()).numpy()
    far = np.linalg.norm(unit[:, None] - unit[None], axis=2) / found.usual
    pairs = sorted((far[i, j], i, j) for i, j in combinations(range(len(unit)), 2) if far[i, j] >= 0.4)
    assert [pair[:2] for pair in found.outside[:4]] == [(i, j) for _, i, j in pairs[:4]]


def test_rows_without_a_direction_are_in_no_group_and_not_chosen() -> None:
    x = cloud(60)
    x[[5, 6, 7]] = 0.0
    assert not close_groups(x).groups
    assert set(cover(x, 60).chosen.tolist()) == set(range(60)) - {5, 6, 7}
    assert close_groups(np.zeros((9, 4), np.float32)).groups == () and len(cover(np.zeros((9, 4), np.float32), 3).chosen) == 0
    assert close_groups(np.ones((9, 4), np.float32)).groups == ()
    x[2, 0] = np.nan
    for work in (close_groups, lambda features: cover(features, 3)):
        with pytest.raises(DataError, match=r"of 1 pictures are not finite .* picture 2"):
            work(x)


def by_hand(x: np.ndarray, n: int, labeled: np.ndarray) -> list[int]:
    unit = directions(x).numpy()
    alike = np.maximum(unit @ unit.T, 0)
    best = alike[:, labeled].max(1) if labeled.any() else np.zeros(len(x))
    chosen: list[int] = []
    for _ in range(n):
        gains = np.maximum(alike - best[:, None], 0).sum(0)
        gains[[*chosen, *np.flatnonzero(labeled)]] = -1
        chosen.append(int(gains.argmax()))
        best = np.maximum(best, alike[:, chosen[-1]])
    return chosen


@pytest.mark.parametrize("known", [0, 40])
def test_the_order_is_that_of_the_plain_greedy_algorithm(known: int) -> None:
    x, labeled = cloud(), np.arange(300) < known
    found = cover(x, 120, labeled)
    assert found.chosen.tolist() == by_hand(x, 120, labeled)
    assert (np.diff(found.covered) >= 0).all() and 0 <= found.before < found.covered[0] and found.covered[-1] <= 1.0001


def test_every_beginning_is_the_choice_of_fewer() -> None:
    x = cloud()
    assert cover(x, 90).chosen[:17].tolist() == cover(x, 17).chosen.tolist()


def test_a_copy_of_what_is_chosen_or_labeled_comes_last() -> None:
    x = planted()
    order = cover(x, 300).chosen.tolist()
    assert min(order.index(100), order.index(299)) < 250 < max(order.index(100), order.index(299))
    assert 299 in cover(x, 299, np.arange(300) == 100).chosen[-10:]


def test_in_large_sets_the_seed_draws_who_is_stood_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallview.evaluation.coverage.REFERENCE", 50)
    x = cloud()
    orders = [cover(x, 30, seed=seed).chosen.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and len(set(orders[0])) == 30


def test_weights_say_what_must_be_stood_for() -> None:
    x = cloud(120)
    ones = cover(x, 20, np.arange(120) < 5, weights=np.ones(120, np.float32))
    assert ones.chosen.tolist() == cover(x, 20, np.arange(120) < 5).chosen.tolist()
    weights = np.random.default_rng(0).random(120).astype(np.float32) ** 4
    found = cover(x, 20, np.arange(120) < 5, weights=weights)
    unit, heavy = directions(x).double(), torch.from_numpy(weights).double()
    best, left = (unit @ unit[:5].T).amax(1).clamp(min=0), set(range(5, 120))
    for i, covered in zip(found.chosen.tolist(), found.covered, strict=True):  # the greedy choice, by definition
        gains = {j: float((unit @ unit[j] - best).clamp(min=0) @ heavy) for j in left}
        assert gains[i] > max(gains.values()) - 1e-4
        best, left = best.maximum(unit @ unit[i]), left - {i}
        assert abs(float(best.mean()) - covered) < 1e-5  # all count alike
    alone = cover(x, 1, weights=(np.arange(120) == 77).astype(np.float32))
    assert alone.chosen.tolist() == [77]
