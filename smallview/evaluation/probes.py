"""The probes on frozen features: kNN, linear, linear by SGD, few labels, and one behind every layer.

Each is a frozen value whose fields are its numbers; it says in one sentence all that repeats it, and measures a contestant on a bench.
Legend: N training pictures, Q test pictures, F features, K classes or labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from smallview.errors import DataError
from smallview.evaluation.bench import Bench, Contestant
from smallview.evaluation.knn import knn_votes, nearest
from smallview.evaluation.labelled import scores_of, train_with_labels
from smallview.evaluation.linear import PENALTIES, fit_linear
from smallview.evaluation.lowshot import RIDGE_PENALTIES, RIDGE_PENALTY, draw_labels, few_labels
from smallview.evaluation.metrics import Figure, Kind, figures
from smallview.networks.stages import pooled_stages
from smallview.optimizers import SGD
from smallview.seeds import derive
from smallview.views.view import View

ALL = ("encoder", "pixels", "untrained")
PROBES: tuple[Literal["ridge", "prototypes"], ...] = ("ridge", "prototypes")
SORTS: tuple[Kind, ...] = ("classes", "labels", "numbers")


def predicted_of(kind: Kind, scores: Tensor) -> Tensor:
    """Classes of scores [Q, K]; scores of labels and numbers as they are."""
    return scores.argmax(1) if kind == "classes" else scores


def _frozen(who: Contestant, where: str = "") -> str:
    return f"frozen backbone features ({who.config.features}){where}, no augmentation"


@dataclass(frozen=True)
class KNN:
    """Votes of the nearest training pictures by cosine similarity, weighted by exp(similarity / temperature).

    Several labels and numbers are the neighbours' weighted means.

    Source: Wu et al., 2018, section 3.4.
    """

    k: tuple[int, ...] = (20, 200)
    temperature: float = 0.07

    kinds: ClassVar[tuple[Kind, ...]] = SORTS
    contestants: ClassVar[tuple[str, ...]] = ALL

    def __post_init__(self) -> None:
        if not self.k or any(k < 1 for k in self.k):
            raise ValueError(f"k is {self.k}; wanted numbers of neighbours, 1 or more")
        if not self.temperature > 0.0:
            raise ValueError(f"temperature is {self.temperature}; wanted a number above 0")

    def measure(self, who: Contestant, bench: Bench) -> list[Figure]:
        """Top-1, mAP or R2 for each k."""
        x, y, z, t = bench.features(who, bench.train), bench.train.targets, bench.features(who, bench.test), bench.test.targets
        near, which = nearest(x, z, max(self.k))
        out = []
        for k in self.k:
            used = min(k, len(x))
            votes = knn_votes(near[:, :used], which[:, :used], y, self.temperature, bench.classes)
            text = f"knn k={used} cosine, votes exp(similarity/{self.temperature}); {_frozen(who)}"
            settings = {"k": used, "temperature": self.temperature}
            out += figures(text, f"knn{k}", bench.train.kind, predicted_of(bench.train.kind, votes), t, settings)
        return out


@dataclass(frozen=True)
class Linear:
    """Logistic regression on standardised features by L-BFGS; ridge regression for numbers.

    The penalty is chosen on a held-out tenth of the training part, then all of it is fitted again.
    """

    penalties: tuple[float, ...] = PENALTIES
    steps: int = 200

    kinds: ClassVar[tuple[Kind, ...]] = SORTS
    contestants: ClassVar[tuple[str, ...]] = ALL

    def __post_init__(self) -> None:
        if not self.penalties or any(not p > 0.0 for p in self.penalties):
            raise ValueError(f"penalties are {self.penalties}; wanted numbers above 0")

    def sentence(self, bench: Bench) -> str:
        """The probe in words."""
        fit = "ridge regression" if bench.train.kind == "numbers" else f"logistic regression by L-BFGS ({self.steps} steps)"
        return (
            f"linear: {fit} on features standardised by the training part, L2 penalty of {self.penalties} chosen on a held-out "
            f"tenth of the training part (seed {bench.seed}), refit on all of it"
        )

    def measure(self, who: Contestant, bench: Bench) -> list[Figure]:
        """Top-1, mAP or R2."""
        x, z = bench.features(who, bench.train), bench.features(who, bench.test)
        probe = fit_linear(x, bench.train.targets, bench.classes, seed=bench.seed, penalties=self.penalties, steps=self.steps)
        predicted, text = predicted_of(bench.train.kind, probe.scores(z)), f"{self.sentence(bench)}; {_frozen(who)}"
        return figures(text, "linear", bench.train.kind, predicted, bench.test.targets, {"penalty": probe.penalty})


@dataclass(frozen=True)
class LinearSGD:
    """One linear layer trained by SGD on random crops through the frozen encoder, as ReLICv2 publishes it.

    The published settings are the defaults; MoCo's are lr=30 at batch 256 with nesterov=false, S3L's and others' one override
    away. lr: for 256 pictures. `scale` (1, 1) with flip 0 trains on uncropped views.

    Source: Tomasev et al., 2022 (settings of the published linear evaluation).
    """

    epochs: float = 100.0
    batch_size: int = 1024
    lr: float = 0.3
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    warmup: float = 0.0
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5

    kinds: ClassVar[tuple[Kind, ...]] = SORTS
    contestants: ClassVar[tuple[str, ...]] = ALL

    def measure(self, who: Contestant, bench: Bench) -> list[Figure]:
        """Top-1, mAP or R2 after the last epoch."""
        n = len(bench.train)
        batch = min(self.batch_size, n)
        steps = max(1, round(self.epochs * (n // batch)))
        net = train_with_labels(
            *(who.module, who.config, bench.train),
            views=(View(scale=self.scale, flip=self.flip, jitter=0.0, grayscale=0.0, blur=0.0),),
            optimizer=SGD(self.lr, self.momentum, self.weight_decay, self.warmup, nesterov=self.nesterov),
            batch_size=batch,
            steps=steps,
            bench=bench,
            seed=derive(bench.seed, "linear_sgd"),
            frozen=True,
        )
        text = (
            f"linear_sgd: one linear layer on frozen features ({who.config.features}) of random crops ({self.scale[0]} to "
            f"{self.scale[1]} of the area, flip {self.flip}), {steps:,} steps of {batch} ({self.epochs:g} epochs), SGD momentum "
            f"{self.momentum}{' Nesterov' * self.nesterov}, learning rate {self.lr * batch / 256:g} ({self.lr} for 256) with warm-up "
            f"{self.warmup} and a cosine to 0, weight decay {self.weight_decay}, last step, seed {bench.seed}"
        )
        kind = bench.train.kind
        predicted = predicted_of(kind, scores_of(net, who.config, bench.test, bench))
        return figures(text, "linear_sgd", kind, predicted, bench.test.targets, {"steps": steps})


@dataclass(frozen=True)
class LowShot:
    """Few labels: a ridge probe and class prototypes, each tuned on the few labeled pictures alone, over many draws.

    per_class: labels of each class; None is those of 1, 5, 10 and 25 that the smallest class has. shares: parts of the training
    part's labels, of each class alike and one at least; None is 1 % and 10 % where they are more than one a class.
    """

    per_class: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None
    draws: int = 20
    prototypes: bool = True

    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)
    contestants: ClassVar[tuple[str, ...]] = ALL

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}; wanted 1 or more")

    def amounts(self, bench: Bench) -> list[tuple[str, int | float]]:
        """(how it is called, labels of each class or share of them) for this training part.

        Raises:
            DataError: a class with fewer pictures than are asked for.
        """
        counts = np.unique(bench.train.targets.numpy(), return_counts=True)[1]
        smallest = int(counts.min())
        wanted = self.per_class
        if wanted is None:
            wanted = tuple(n for n in (1, 5, 10, 25) if n <= smallest)
        elif max(wanted, default=0) > smallest:
            raise DataError(
                f"lowshot asks for {max(wanted)} labels of each class and the smallest class of {bench.train.name} has {smallest} "
                f"pictures; wanted --set lowshot.per_class='({smallest},)' or fewer, or more pictures"
            )
        shares = self.shares
        if shares is None:
            shares = tuple(share for share in (0.01, 0.1) if share * smallest >= 2.0)
        return [*((f"{n} a class", n) for n in wanted), *((f"{100 * share:g} %", float(share)) for share in shares)]

    def measure(self, who: Contestant, bench: Bench) -> list[Figure]:
        """Mean top-1 over the draws for every number of labels."""
        x, y, z, t = bench.features(who, bench.train), bench.train.targets, bench.features(who, bench.test), bench.test.targets
        out = []
        for called, amount in self.amounts(bench):
            chosen = [draw_labels(y, amount, bench.seed, which) for which in range(self.draws)]
            for probe in PROBES[: 1 + self.prototypes]:
                found = few_labels(x, y, z, t, chosen, probe, bench.classes)
                how = (
                    f"ridge regression to one-hot classes, penalty of {len(RIDGE_PENALTIES)} by the log-loss of labeled pictures left out "
                    f"(of those within a standard error of the least the nearest to {RIDGE_PENALTY:.2g})"
                    if probe == "ridge"
                    else "nearest class mean by cosine of centred features"
                )
                text = (
                    f"lowshot: {called} ({len(chosen[0])} labels), {how}; mean of {self.draws} draws (seed {bench.seed}), the same "
                    f"for all; {_frozen(who)}"
                )
                metric = f"lowshot {called} {probe} top-1 %"
                settings = {"std": round(found.std, 4), "draws": self.draws, "labels": len(chosen[0])}
                out.append(Figure(text, metric, round(found.mean, 4), settings, interval=found.interval))
        return out


@dataclass(frozen=True)
class Layers:
    """A linear probe behind every stage of the encoder and every layer of its projector, from one pass over the pictures.

    Maps are averaged over their places. The untrained floor is the same stage of the untrained encoder.

    Source: Bordes et al., 2023 (FFCV-SSL: probes at every layer).
    """

    probe: Linear = Linear()

    kinds: ClassVar[tuple[Kind, ...]] = SORTS
    contestants: ClassVar[tuple[str, ...]] = ALL

    def measure(self, who: Contestant, bench: Bench) -> list[Figure]:
        """Top-1, mAP or R2 of each stage."""
        stages = pooled_stages(who.module) if who.name != "pixels" else None
        if stages is None:
            one = self.probe.measure(who, bench)
            return [Figure(f.protocol, f"layers pixels {f.metric}", f.value, f.settings, f.interval) for f in one]
        out = []
        train, test = bench.stages(who, bench.train), bench.stages(who, bench.test)
        for name, x in train.items():
            probe = fit_linear(
                x, bench.train.targets, bench.classes, seed=bench.seed, penalties=self.probe.penalties, steps=self.probe.steps
            )
            text = (
                f"layers: {self.probe.sentence(bench)}; frozen output of {name} averaged over its places ({x.shape[1]} numbers), "
                "no augmentation"
            )
            predicted = predicted_of(bench.train.kind, probe.scores(test[name]))
            settings = {"penalty": probe.penalty, "width": int(x.shape[1])}
            out += figures(text, f"layers {name} linear", bench.train.kind, predicted, bench.test.targets, settings)
        return out
