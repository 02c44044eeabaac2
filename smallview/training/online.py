"""Labels looked at while training runs, with features that cost little; nothing here touches the encoder.

The figures are for watching a run. Those for telling come from evaluation/protocol.py, with floors and test parts.

Legend: N pictures, B images of a step, C channels, S side, F features.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from smallview.errors import DataError
from smallview.evaluation.knn import knn_predict
from smallview.evaluation.linear import held_out
from smallview.evaluation.ridge import fit_ridge
from smallview.networks.encoders import EncoderConfig
from smallview.networks.modes import evaluating
from smallview.records import Pictures
from smallview.seeds import generator
from smallview.views.making import centre_views

EVERY = 100
KEPT_ROWS = 2048
TESTED_ROWS = 512
NEIGHBOURS, TEMPERATURE, PENALTY = 20, 0.07, 0.1
BATCHES = 6  # of a labeled set: forward passes of so many pictures cost one step of two views
MOST_BYTES = 2**29  # of a labeled set's views, which are made once and kept
Labels = npt.NDArray[np.int64]
PROBES = f"ridge regression on one-hot classes (penalty {PENALTY}) and kNN k={NEIGHBOURS}"


class OnlineLabels:
    """Judges by the training's own views: features that a step computed anyway, of pictures whose labels are known.

    labels: int64 [N] by position in the data, under 0 where there is none. The probes are fitted on the features of earlier steps and
    tested on those of the newest; no picture is in both.
    """

    def __init__(self, labels: Labels, classes: int, batch_size: int, every: int = EVERY) -> None:
        self.labels, self.classes, self.every = labels, classes, every
        self.protocol = (
            f"{PROBES} on features of training views of the last {KEPT_ROWS:,} pictures at most, tested on the newest, "
            "which are left out of the fit"
        )
        self._kept: deque[tuple[Labels, Tensor]] = deque(maxlen=max(2, KEPT_ROWS // batch_size))

    def keep(self, index: Labels, features: Tensor) -> None:
        """Remember a step's features [B, F], wherever they lie, of the pictures at these positions, int64 [B]."""
        most = KEPT_ROWS // 2  # of one step, so that a second one is left to fit on
        # a clone, for a part of a tensor would hold what the encoder made of all views
        self._kept.append((index[:most], features[:most].clone()))

    def look(self) -> dict[str, float]:
        """Percent right by each probe, and of how many views; empty while there is too little to fit."""
        if not self._kept:
            return {}
        index = np.concatenate([rows for rows, _ in self._kept])
        known = self.labels[index] >= 0
        distinct = np.unique(index[known])
        if len(distinct) < 4:
            return {}
        newest = index[known][::-1][:TESTED_ROWS]
        first_seen = np.sort(np.unique(newest, return_index=True)[1])
        asked = newest[first_seen[: max(1, len(distinct) // 4)]]  # a quarter of the pictures at most
        last = first_seen[len(asked)] if len(first_seen) > len(asked) else len(newest)
        among = np.isin(index, asked)
        recent = np.zeros(len(index), np.bool_)
        recent[np.flatnonzero(known)[::-1][:last]] = True
        features = torch.cat([kept for _, kept in self._kept]).float().cpu()
        y = torch.from_numpy(self.labels[index])
        train, test = torch.from_numpy(known & ~among), torch.from_numpy(known & among & recent)
        return judged(features[train], y[train], features[test], y[test], self.classes)


class OnlineSet:
    """Judges by a labeled set beside the data: a fixed choice of it, one centre view each, features in evaluation mode.

    labels: int64 [N], under 0 where there is none. At most 6 x batch_size pictures take part, and no more than have views of 512 MB
    together (891 at 224 px); a third of every class is for testing.

    Raises:
        DataError: no picture has a label.
    """

    def __init__(
        self,
        pictures: Pictures,
        labels: Labels,
        classes: int,
        config: EncoderConfig,
        batch_size: int,
        seed: int,
        every: int = EVERY,
    ) -> None:
        self.classes, self.every, self.batch_size = classes, every, batch_size
        fit = MOST_BYTES // (4 * config.in_channels * config.size**2)
        known = np.flatnonzero(labels >= 0)
        if len(known) == 0:
            raise DataError(
                f"all {len(labels):,} labels of the labeled set are under 0, which says that there is none; wanted 0, 1, ..."
            )
        count = min(len(known), BATCHES * batch_size, max(BATCHES, fit))
        chosen = known[np.sort(generator(seed, "online").choice(len(known), count, replace=False))].astype(np.int64)
        self.y = torch.from_numpy(labels[chosen])
        self.train, self.test = held_out(self.y, 1 / 3, seed)
        self.views = torch.cat(list(centre_views(pictures, config.size, config.mean, config.std, which=chosen)))
        self.protocol = (
            f"{PROBES} on frozen features of one centre view of {len(self.train):,} labeled pictures, tested on "
            f"{len(self.test):,} others"
        )

    @torch.no_grad()
    def look(
        self,
        encoder: nn.Module,
        device: torch.device,
        memory_format: torch.memory_format,
        autocast: AbstractContextManager[object],
    ) -> dict[str, float]:
        """Percent right by each probe, and of how many pictures. The encoder is as it was afterwards."""
        out = []
        with evaluating(encoder), autocast:
            for part in self.views.split(2 * self.batch_size):
                out.append(encoder(part.to(device).contiguous(memory_format=memory_format)).float().cpu())
        features = torch.cat(out)
        train, test = self.train, self.test
        return judged(features[train], self.y[train], features[test], self.y[test], self.classes)


def judged(x: Tensor, y: Tensor, z: Tensor, t: Tensor, classes: int) -> dict[str, float]:
    """Percent right of both probes fitted on x [N, F], y [N] and tested on z, t; empty where there is nothing to fit or to test.

    Example:
        >>> x, y = torch.tensor([[-1.0], [-0.9], [1.0], [0.9]]), torch.tensor([0, 0, 1, 1])
        >>> judged(x, y, x + 0.1, y, 2)
        {'online/ridge': 100.0, 'online/knn': 100.0, 'online/pictures': 4}
    """
    if len(t) == 0 or len(torch.unique(y)) < 2 or not bool(torch.isfinite(x).all() and torch.isfinite(z).all()):
        return {}
    ridge = fit_ridge(x, y, classes, PENALTY).predict(z)
    knn = knn_predict(x, y, z, k=min(NEIGHBOURS, len(x)), temperature=TEMPERATURE, classes=classes)
    right = [round(100.0 * float((predicted == t).double().mean()), 2) for predicted in (ridge, knn)]
    return {"online/ridge": right[0], "online/knn": right[1], "online/pictures": len(t)}
