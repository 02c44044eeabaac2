"""The protocol `dense`: what frozen feature maps tell of each place, by a linear layer, by neighbours, and by their first direction.

Legend: N pictures, F features, h x w places of a map, S the side of a view, K classes, P places that were drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallview.errors import DataError
from smallview.evaluation.bench import Bench, Contestant, Labeled
from smallview.evaluation.knn import knn_votes, nearest
from smallview.evaluation.linear import PENALTIES, LinearProbe, fit_linear
from smallview.evaluation.metrics import Figure, Kind
from smallview.evaluation.robust import SEVERITIES, Corrupted, check_severities, names_of
from smallview.networks.feature_maps import feature_map
from smallview.networks.modes import evaluating
from smallview.seeds import generator
from smallview.views.making import ViewMaker
from smallview.views.view import View

IGNORED = 255
LARGEST = 224
CELL = 8  # pixels of a place of the raw-pixel floor's map
BATCH = 32
_PLAIN = View(flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Counts int64 [K, K] of true (row) and predicted (column) classes, without the places that are ignored."""
    kept = truth != IGNORED
    pairs = truth[kept].long() * classes + predicted[kept].long()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def iou(counts: Tensor) -> tuple[float, list[float]]:
    """(mean, each class's) intersection over union in percent from counts [K, K]; a class in neither is NaN and not in the mean.

    Example:
        >>> iou(torch.tensor([[2, 1], [0, 1]]))
        (58.3333, [66.6667, 50.0])
    """
    hit = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - hit
    each = torch.where(union > 0, hit / union.clamp(min=1), torch.nan)
    return round(100.0 * float(each.nanmean()), 4), [round(100.0 * float(value), 4) for value in each]


def majority(masks: Tensor, classes: int, height: int, width: int) -> Tensor:
    """The most frequent class of each place, int64 [N, h, w], of masks [N, S, S]; ignored where most of the place is."""
    best = torch.full((len(masks), height, width), -1.0)
    found = torch.zeros(len(masks), height, width, dtype=torch.int64)
    for code in (*range(classes), IGNORED):  # one class at a time: all at once are large for many classes
        share = F.adaptive_avg_pool2d((masks == code).float(), (height, width))
        found = torch.where(share > best, code, found)
        best = torch.maximum(share, best)
    return found


def foreground_of(scores: Tensor) -> Tensor:
    """Which side of zero is the foreground of maps [N, h, w], without a label: the sign that the border has less of.

    Example:
        >>> board = -torch.ones(1, 4, 4)
        >>> board[0, 1:3, 1:3] = 2.0
        >>> bool((foreground_of(board) == foreground_of(-board)).all()), int((foreground_of(board) > 0).sum())
        (True, 4)
    """
    border = torch.ones(scores.shape[1:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    positive = float((scores[:, border] > 0).double().mean())
    return scores if positive <= 0.5 else -scores


@dataclass(frozen=True)
class Dense:
    """Segmentation on frozen feature maps, mean intersection over union; and the foreground by the first component, without labels.

    side: of the whole picture's view in pixels; None is four times the encoder's own, 224 at most. k: neighbours of a place. places:
    training places that the probes see at most. corruptions: as in `robust`, for the linear probe's test pictures; without
    elastic_transform, which moves what the masks mark.

    Source: the two probes as in dense evaluations of self-supervised encoders; the first component as in Amir et al., 2021.
    """

    side: int | None = None
    k: int = 20
    places: int = 20_000
    penalties: tuple[float, ...] = PENALTIES
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = SEVERITIES

    kinds: ClassVar[tuple[Kind, ...]] = ()
    contestants: ClassVar[tuple[str, ...]] = ("encoder", "pixels", "untrained")

    def __post_init__(self) -> None:
        if self.side is not None and not 16 <= self.side <= 1024:
            raise ValueError(f"side is {self.side}; wanted 16 to 1024 pixels")
        if self.k < 1 or self.places < 10:
            raise ValueError(f"k is {self.k} and places {self.places}; wanted 1 and 10 or more")
        names_of(self.corruptions)
        check_severities(self.severities)

    def measure(self, who: Contestant, bench: Bench) -> list[Figure]:
        """Mean IoU of both probes and foreground IoU of the first component.

        Raises:
            DataError: parts without masks, or masks of one class.
        """
        for part in (bench.train, bench.test):
            if part.masks is None:
                raise DataError(f"{part.name} has no masks and dense needs them; wanted --train-masks and --test-masks")
        classes = max(highest(bench.train), highest(bench.test)) + 1
        if classes < 2:
            raise DataError(f"the masks of {bench.train.name} have one class; wanted two or more")
        side = self.side or max(16, min(LARGEST, 4 * max(bench.train_size, 1)))
        x, y, owners = self._drawn(who, bench, side, classes)
        if len(torch.unique(y)) < 2:
            raise DataError(f"the drawn places of {bench.train.name} are all of one class; wanted masks with two or more")
        probe = fit_linear(x, y, classes, seed=bench.seed, penalties=self.penalties, groups=owners)
        by_linear, by_neighbours = (
            torch.zeros(classes, classes, dtype=torch.int64),
            torch.zeros(classes, classes, dtype=torch.int64),
        )
        total, outer, count = (
            torch.zeros(x.shape[1], dtype=torch.float64),
            torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64),
            0,
        )
        for masks, maps in _maps(who, bench, bench.test, side):
            n, f, h, w = maps.shape
            rows = maps.permute(0, 2, 3, 1).reshape(-1, f)
            scores = probe.scores(rows).view(n, h, w, classes)
            by_linear += confusion(_enlarged(scores, side), masks, classes)
            near, which = nearest(x, rows, self.k)
            votes = knn_votes(near, which, y, 0.07, classes)
            votes = (votes / votes.sum(1, keepdim=True)).view(n, h, w, classes)
            by_neighbours += confusion(_enlarged(votes, side), masks, classes)
            total += rows.double().sum(0)
            outer += rows.double().T @ rows.double()
            count += len(rows)
        mean = total / count
        direction = torch.linalg.eigh(outer / count - torch.outer(mean, mean)).eigenvectors[:, -1]
        fronts = self._fronts(who, bench, side, mean.float(), direction.float())
        text = (
            f"dense: whole pictures resized to {side} x {side}, frozen maps of {x.shape[1]} numbers a place, {len(x):,} training places "
            f"(seed {bench.seed}), scores enlarged bilinearly to every pixel, {classes} classes"
        )
        settings = {"side": side, "places": len(x)}
        found: list[tuple[str, Tensor, str, dict[str, Any]]] = [
            (
                "linear",
                by_linear,
                f"logistic regression, L2 penalty of {self.penalties} chosen on a held-out tenth",
                {"penalty": probe.penalty},
            ),
            ("neighbours", by_neighbours, f"{self.k} nearest places by cosine, votes exp(similarity/0.07)", {"k": self.k}),
        ]
        out = [
            Figure(f"{text}; {words}", f"dense {name} mIoU %", iou(counts)[0], {**settings, **more, "by_class": iou(counts)[1]})
            for name, counts, words, more in found
        ]
        if self.corruptions:
            out.append(self._corrupted(who, bench, side, classes, probe, f"{text}; {found[0][2]}", settings))
        words = "the first principal component of all test places above 0, its sign by the border alone; no label; mean over pictures"
        out.append(
            Figure(f"{text}; {words}", "dense first component IoU %", round(100.0 * float(np.mean(fronts)), 4), settings)
        )
        return out

    def _corrupted(
        self, who: Contestant, bench: Bench, side: int, classes: int, probe: LinearProbe, text: str, settings: dict[str, Any]
    ) -> Figure:
        """The linear probe on corrupted test pictures: the mean over corruptions of the mean IoU over severities."""
        names = [name for name in names_of(self.corruptions) if name != "elastic_transform"]
        means = {}
        for name in names:
            bench.say(f"dense: {who.name}: {name}")
            found = []
            for severity in self.severities:
                pictures = Corrupted(bench.test.pictures, np.arange(len(bench.test)), name, severity, bench.seed)
                counts = torch.zeros(classes, classes, dtype=torch.int64)
                for masks, maps in _maps(who, bench, replace(bench.test, pictures=pictures), side):
                    n, f, h, w = maps.shape
                    scores = probe.scores(maps.permute(0, 2, 3, 1).reshape(-1, f)).view(n, h, w, classes)
                    counts += confusion(_enlarged(scores, side), masks, classes)
                found.append(iou(counts)[0])
            means[name] = round(float(np.mean(found)), 4)
        said = f"{text}; test pictures corrupted as packed ({', '.join(names)}), severities {self.severities}, mean over them"
        return Figure(
            said,
            "dense corrupted linear mIoU %",
            round(float(np.mean(list(means.values()))), 4),
            {**settings, "by_corruption": means},
        )

    def _drawn(self, who: Contestant, bench: Bench, side: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Training places: features [P, F], classes int64 [P] and their pictures int64 [P].

        As many of each picture, and a part of those where the pictures are more.
        """
        each = max(1, self.places // max(1, len(bench.train)))
        xs, ys, owners, number = [], [], [], 0
        for masks, maps in _maps(who, bench, bench.train, side):
            codes = majority(masks, classes, *maps.shape[2:])
            for features, code in zip(maps.flatten(2).transpose(1, 2), codes.flatten(1), strict=True):
                usable = torch.nonzero(code != IGNORED)[:, 0]
                order = generator(bench.seed, "dense", number).permutation(len(usable))[:each]
                chosen = usable[torch.from_numpy(order)]
                xs.append(features[chosen])
                ys.append(code[chosen])
                owners.append(torch.full((len(chosen),), number))
                number += 1
        x, y, owner = torch.cat(xs), torch.cat(ys), torch.cat(owners)
        if len(x) <= self.places:
            return x, y, owner
        kept = torch.from_numpy(generator(bench.seed, "dense places").permutation(len(x))[: self.places])
        return x[kept], y[kept], owner[kept]

    def _fronts(self, who: Contestant, bench: Bench, side: int, mean: Tensor, direction: Tensor) -> list[float]:
        """Foreground IoU of each test picture that has a foreground; any class above 0 is one."""
        boards, truths = [], []
        for masks, maps in _maps(who, bench, bench.test, side):
            boards.append(torch.einsum("nfhw,f->nhw", maps - mean[:, None, None], direction))
            truths.append(masks)
        board, truth = foreground_of(torch.cat(boards)), torch.cat(truths)
        front = F.interpolate(board[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0] > 0
        out = []
        for mine, masks in zip(front, truth, strict=True):
            kept, real = masks != IGNORED, (masks > 0) & (masks != IGNORED)
            if bool(real.any()):
                union = int(((mine | real) & kept).sum())
                out.append(float((mine & real).sum()) / max(1, union))
        return out or [float("nan")]


def highest(part: Labeled) -> int:
    """The highest class in a part's masks."""
    assert part.masks is not None
    return max((int(mask[mask != IGNORED].max(initial=0)) for mask in part.masks), default=0)


def _enlarged(scores: Tensor, side: int) -> Tensor:
    """Classes int64 [N, S, S] of scores [N, h, w, K] enlarged bilinearly."""
    large = F.interpolate(scores.permute(0, 3, 1, 2), size=(side, side), mode="bilinear", align_corners=False)
    return large.argmax(1)


def _sized(mask: npt.NDArray[np.uint8], side: int) -> Tensor:
    """A mask [H, W] at the side of the view, by the nearest pixel."""
    rows = ((np.arange(side) + 0.5) * mask.shape[0] / side).astype(np.int64)
    columns = ((np.arange(side) + 0.5) * mask.shape[1] / side).astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(mask[rows[:, None], columns[None, :]]).astype(np.int64))


@torch.no_grad()
def _maps(who: Contestant, bench: Bench, part: Labeled, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(masks int64 [n, S, S], maps float32 [n, F, h, w]) of whole pictures resized to a square, in order."""
    assert part.masks is not None
    pictures, config = part.pictures, who.config
    maker = ViewMaker(pictures, (_PLAIN,), side, config.mean, config.std, seed=0, threads=bench.threads)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    raw = who.name == "pixels"
    run = None if raw else feature_map(who.module)
    who.module.to(bench.device, memory_format=bench.memory_format)  # type: ignore[call-overload]
    with evaluating(who.module if not raw else nn.Identity()):
        for start in range(0, len(pictures), BATCH):
            index = np.arange(start, min(start + BATCH, len(pictures)))
            zeros = np.zeros(len(index))
            boxes = np.stack([zeros, zeros, pictures.heights[index], pictures.widths[index]], 1).astype(np.float64)
            views = (maker.crop(index, boxes, np.zeros(len(index), np.bool_), side) - mean) / std
            if run is None:
                maps = F.avg_pool2d(views, CELL)
            else:
                maps = run(views.to(bench.device).contiguous(memory_format=bench.memory_format)).float().cpu()
            yield torch.stack([_sized(part.masks[int(i)], side) for i in index]), maps.contiguous()
