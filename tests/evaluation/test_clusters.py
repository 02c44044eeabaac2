"""Groups without labels: k-means of the same bits, silhouettes and agreement as scikit-learn has them, a number of clusters that is found."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score, silhouette_score

from smallview.evaluation.clusters import (
    _means,
    assign,
    choose_k,
    counted,
    evened,
    grid,
    kmeans,
    matched_accuracy,
    nmi,
    silhouette,
)


def blobs(k: int, each: int, features: int = 12, wide: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around k directions, in mixed order, and which direction each is of."""
    random = np.random.default_rng(k)
    labels = random.permutation(np.repeat(np.arange(k), each))
    centres = np.linalg.qr(random.standard_normal((features, features)))[0][:k]
    rows = centres[labels] + wide * random.standard_normal((len(labels), features))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    rows = data.data[:600] / np.linalg.norm(data.data[:600], axis=1, keepdims=True)
    return rows.astype(np.float32), data.target[:600]


def test_it_is_as_good_as_the_reference_and_its_centres_are_means() -> None:
    rows, _ = digits()
    found = kmeans(rows, 10, seed=0)
    reference = KMeans(10, n_init=4, random_state=0).fit(rows).inertia_ / len(rows)
    assert found.spread < 1.02 * reference
    for c in range(10):
        np.testing.assert_allclose(found.centres[c], rows[found.assigned == c].mean(0), atol=1e-5)
    which, far = assign(rows, found.centres)
    exact = np.linalg.norm(rows[:, None].astype(np.float64) - found.centres[None], axis=2)
    assert np.array_equal(which, exact.argmin(1)) and np.allclose(far, exact.min(1), atol=1e-3)


def test_one_seed_gives_the_same_bits_and_another_one_others() -> None:
    rows, _ = digits()
    one, other = kmeans(rows, 7, seed=3), kmeans(rows, 7, seed=3)
    assert one.centres.tobytes() == other.centres.tobytes() and np.array_equal(one.assigned, other.assigned)
    assert kmeans(rows, 7, seed=4).centres.tobytes() != one.centres.tobytes()


def test_as_many_clusters_as_pictures_and_copies_leave_none_empty() -> None:
    rows = np.eye(6, dtype=np.float32)
    assert sorted(kmeans(rows, 6, seed=0).assigned) == list(range(6))
    twice = np.repeat(rows[:3], [50, 1, 1], axis=0)
    for seed in range(5):
        assert sorted(np.bincount(kmeans(twice, 3, seed).assigned)) == [1, 1, 50]


def test_an_empty_cluster_takes_the_farthest_row() -> None:
    rows = np.eye(4, dtype=np.float32)
    found = _means(rows, np.array([0, 0, 2, 2]), np.array([0.1, 0.7, 0.2, 0.3], np.float32), 3)
    assert np.array_equal(found, [(rows[0] + rows[1]) / 2, rows[1], (rows[2] + rows[3]) / 2])


def test_evened_rows_follow_no_one_wide_direction() -> None:
    """Brightness, say, is wider than all that tells groups apart: k-means cuts along it until rows are evened."""
    rows, labels = blobs(4, 50)
    wide = np.c_[np.random.default_rng(0).standard_normal((200, 1)), rows].astype(np.float32)
    before, after = (matched_accuracy(counted(kmeans(x, 4, 0).assigned, labels)) for x in (wide, evened(wide)(wide)))
    assert before < 0.65 and after > 0.95
    few = evened(rows[:3])
    assert few.directions.shape == (12, 1) and np.isfinite(few(np.zeros((2, 12), np.float32))).all()


def test_the_silhouette_is_the_reference() -> None:
    rows, labels = digits()
    assert silhouette(rows, labels) == pytest.approx(silhouette_score(rows, labels), abs=1e-5)
    alone = np.r_[0, np.ones(599, np.int64)]
    assert silhouette(rows, alone) == pytest.approx(silhouette_score(rows, alone), abs=1e-5)
    assert silhouette(rows, np.zeros(600, np.int64)) == 0.0


@pytest.mark.parametrize("k", [2, 5, 9])
def test_auto_finds_the_number_of_groups_that_stand_apart(k: int) -> None:
    rows, labels = blobs(k, 40)
    number, tried = choose_k(rows, 14, seed=0)
    assert number == k and list(tried) == grid(14)
    table = counted(kmeans(rows, number, seed=0).assigned, labels)
    assert nmi(table) > 0.95 and matched_accuracy(table) > 0.95


def test_agreement_is_the_reference() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 200)
    assigned = np.where(random.random(200) < 0.6, labels + 7, random.integers(0, 6, 200))
    table = counted(assigned, labels)
    assert table.sum() == 200 and nmi(table) == pytest.approx(normalized_mutual_info_score(labels, assigned))
    # one class for each cluster, no class twice: of three clusters for two classes one is all wrong
    assert matched_accuracy(np.array([[5, 0], [4, 0], [0, 3]])) == pytest.approx(8 / 12)
    assert nmi(np.array([[3, 4]])) == 0.0
