"""Random numbers as functions of keys: uniform, uncorrelated between neighbours, the same on every machine."""

from __future__ import annotations

import math

import numpy as np
import pytest

from smallview.seeds import derive, generator, sample_keys, uniforms

N = 20_000


def chi_square(u: np.ndarray, bins: int = 64) -> float:
    """Standardised: above 5 practically never."""
    counts = np.histogram(u, bins, (0.0, 1.0))[0]
    expected = u.size / bins
    return float((((counts - expected) ** 2 / expected).sum() - (bins - 1)) / math.sqrt(2 * (bins - 1)))


@pytest.mark.parametrize("which", [0, 1, 7, 21])
def test_uniform_over_samples_in_every_place(which: int) -> None:
    u = uniforms(sample_keys(0, "test", np.arange(N)), 22)
    assert u.dtype == np.float64 and u.min() >= 0 and u.max() < 1
    assert abs(chi_square(u[:, which])) < 5
    assert abs(u[:, which].mean() - 0.5) < 5 / math.sqrt(12 * N)
    assert abs(chi_square((u[:, which] * 1024) % 1)) < 5  # lower bits too
    # power
    assert chi_square(u[:, which] ** 1.1) > 5


def test_uniform_over_places_of_one_key() -> None:
    u = uniforms(sample_keys(3, "test", [5]), N)[0]
    assert abs(chi_square(u)) < 5
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / math.sqrt(N)


@pytest.mark.parametrize(
    "other",
    [
        (0, "crop", np.arange(N) + 1, 0, 0),
        (0, "crop", np.arange(N), 1, 0),
        (0, "crop", np.arange(N), 0, 1),
        (1, "crop", np.arange(N), 0, 0),
        (0, "flip", np.arange(N), 0, 0),
        (0, "crop", np.arange(N) * 2, 0, 0),
        (0, "crop", np.arange(N)[::-1], 0, 0),
    ],
    ids=["sample", "epoch", "view", "seed", "op", "stride", "mirror"],
)
def test_neighbouring_keys_are_uncorrelated(other: tuple[int, str, np.ndarray, int, int]) -> None:
    a = uniforms(sample_keys(0, "crop", np.arange(N), 0, 0), 3)
    b = uniforms(sample_keys(*other), 3)
    assert np.abs(np.corrcoef(a.T, b.T)[:3, 3:]).max() < 5 / math.sqrt(N)
    # jointly uniform, too: 8 x 8 cells
    cells = np.floor(a[:, 0] * 8) * 8 + np.floor(b[:, 0] * 8)
    assert abs(chi_square((cells + 0.5) / 64)) < 5
    assert len(np.intersect1d(sample_keys(0, "crop", np.arange(N), 0, 0), sample_keys(*other))) in (0, N - 1, N // 2, N)


def test_keys_are_distinct_and_do_not_overlap_their_neighbours_counters() -> None:
    keys = sample_keys(0, "crop", np.arange(N))
    u = uniforms(keys, 22)
    assert len(np.unique(keys)) == N
    assert len(np.unique(u)) > u.size - 5


def test_the_same_on_every_machine() -> None:
    assert derive(0, "order", 3) == 5172884068272721061
    assert sample_keys(0, "crop", [0, 1, 2], 5).tolist() == [16943345455430128109, 15832841536743967690, 3591835202551040887]
    assert uniforms(sample_keys(0, "crop", [7], 5), 2).tolist() == [[0.8506125738194027, 0.9988792932974202]]
    assert (
        derive(0, "a", 1) != derive(0, "a", 2) and derive(0, "a", 1) != derive(1, "a", 1) and derive(0, "a") != derive(0, "b")
    )
    assert derive(np.int64(3), "a", np.int64(2)) == derive(3, "a", 2)
    np.testing.assert_array_equal(generator(1, "x").integers(0, 99, 5), generator(1, "x").integers(0, 99, 5))
    np.testing.assert_array_equal(sample_keys(0, "x", np.array([1, 2], np.int32)), sample_keys(0, "x", [1, 2]))
