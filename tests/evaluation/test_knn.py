"""kNN against a slow loop, scikit-learn and golden values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from smallview.evaluation import knn
from smallview.evaluation.knn import knn_predict


def draw(n: int, f: int, seed: int = 0) -> Tensor:
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed))


def slow(train: Tensor, labels: Tensor, test: Tensor, k: int, temperature: float, classes: int, own: bool = False) -> list[int]:
    out = []
    for q, query in enumerate(test):
        near = []
        for i, one in enumerate(train):
            if not (own and i == q):
                near.append((float(query @ one) / (float(query.norm()) * float(one.norm())), int(labels[i])))
        votes = [0.0] * classes
        for similarity, label in sorted(near, reverse=True)[:k]:
            votes[label] += math.exp(similarity / temperature)
        out.append(int(np.argmax(votes)))
    return out


@pytest.mark.parametrize("k", [1, 5, 40, 1000])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_slow_loop(k: int, temperature: float) -> None:
    train, test = draw(40, 6), draw(25, 6, seed=1)
    labels = torch.arange(40) % 4
    got = knn_predict(train, labels, test, k=k, temperature=temperature, classes=4)
    assert got.tolist() == slow(train, labels, test, k, temperature, 4)
    alone = knn_predict(train, labels, train, k=k, temperature=temperature, classes=4, leave_one_out=True)
    assert alone.tolist() == slow(train, labels, train, k, temperature, 4, own=True)
    if k == 1:
        assert knn_predict(train, labels, train, k=1, temperature=temperature, classes=4).tolist() == labels.tolist()
        assert alone.tolist() != labels.tolist()


def test_scikit_learn() -> None:
    train, test = draw(300, 8), draw(200, 8, seed=1)
    labels = torch.randint(0, 5, (300,), generator=torch.Generator().manual_seed(2))
    theirs = KNeighborsClassifier(
        n_neighbors=20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(train.double().numpy(), labels.numpy())
    got = knn_predict(train, labels, test, k=20, temperature=0.07, classes=5)
    assert got.tolist() == theirs.predict(test.double().numpy()).tolist()


def test_golden() -> None:
    def features(n: int, shift: float) -> Tensor:
        j, d = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)[None]
        return F.normalize(torch.sin(1.7 * (j % 7) + 0.9 * d + 0.31 * ((j**2) % 11) * torch.cos(d) + shift), dim=1)

    labels = torch.arange(512) % 7
    got = knn_predict(features(512, 0.0), labels, features(64, 0.35), k=20, temperature=0.1, classes=7)
    assert float((got == torch.arange(64) % 7).double().mean()) == 0.5625


@pytest.mark.parametrize("chunk", [1, 7, 24, 25, 100])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch, chunk: int, leave_one_out: bool) -> None:
    train = draw(25, 6)
    labels = torch.arange(25) % 3
    options = {"k": 5, "temperature": 0.07, "classes": 3, "leave_one_out": leave_one_out}
    whole = knn_predict(train, labels, train, **options)
    monkeypatch.setattr(knn, "QUERIES", chunk)
    assert torch.equal(knn_predict(train, labels, train, **options), whole)
    monkeypatch.setattr(knn, "MOST_SIMILARITIES", 60)
    assert torch.equal(knn_predict(train, labels, train, **options), whole)


def test_length_does_not_matter_and_small_temperatures_do_not_overflow() -> None:
    train, test, labels = draw(30, 4), draw(10, 4, seed=1), torch.arange(30) % 3
    a = knn_predict(train, labels, test, k=5, temperature=0.001, classes=3)
    assert torch.equal(a, knn_predict(train, labels, test, k=1, temperature=1.0, classes=3))
    assert torch.equal(a, knn_predict(100 * train, labels, 0.01 * test, k=5, temperature=0.001, classes=3))


def test_edges() -> None:
    train, labels = draw(5, 3), torch.tensor([0, 0, 2, 2, 2])
    assert knn_predict(train, labels, train[:0], k=3, temperature=0.1, classes=4).shape == (0,)
    with pytest.raises(ValueError, match="wanted 1 or more"):
        knn_predict(train, labels, train, k=0, temperature=0.1, classes=3)
