"""What labels can do with the whole encoder: fine-tuning it, and training the same from fresh weights.

Legend: N training pictures, Q test pictures, K classes or labels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from smallview.errors import UsageError
from smallview.evaluation.bench import Bench, Contestant
from smallview.evaluation.features import fresh_encoder
from smallview.evaluation.labelled import Classifier, scores_of, supervised, train_with_labels
from smallview.evaluation.lowshot import draw_labels
from smallview.evaluation.metrics import Figure, Kind, figures
from smallview.evaluation.probes import SORTS, predicted_of
from smallview.networks.encoders import EncoderConfig, count_features
from smallview.networks.freezing import freeze, unfreeze
from smallview.networks.truncating import regrow
from smallview.optimizers import SGD
from smallview.schedules import Constant
from smallview.seeds import derive
from smallview.views.view import View


@dataclass(frozen=True)
class FineTune:
    """The whole encoder trained on with labels, as S3L does: mixup, 120 epochs, a high learning rate; the last step counts.

    lr: for a batch of `batch_size`, whatever that is. shares: parts of the training labels; 1 is all. scale: part of the area that
    training views show. The floor is the same encoder trained in the same way from fresh weights. size: of all views, the encoder's own by
    default. grow: an encoder that was trained without its last stages is tuned as it is (`no`), or as the `whole`: its last stages are added
    fresh and trained for warm_epochs at the rate warm_lr, the rest frozen, whose BatchNorm statistics `moves` with what passes or are `fixed`.

    Source: Cao and Wu, 2021 (S3L).
    """

    epochs: float = 120.0
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    mixup: float = 1.0
    shares: tuple[float, ...] = (1.0,)
    scale: tuple[float, float] = (0.766, 0.766)
    flip: float = 0.5
    size: int | None = None
    grow: Literal["no", "whole"] = "no"
    warm_epochs: float = 10.0
    warm_lr: float = 0.1
    batch_norm: Literal["moves", "fixed"] = "moves"

    kinds: ClassVar[tuple[Kind, ...]] = SORTS
    contestants: ClassVar[tuple[str, ...]] = ("encoder", "untrained")

    def __post_init__(self) -> None:
        if not self.shares or any(not 0.0 < share <= 1.0 for share in self.shares):
            raise ValueError(f"shares are {self.shares}; wanted parts of the labels, above 0 and at most 1")
        if self.size is not None and not 4 <= self.size <= 1024:
            raise ValueError(f"size is {self.size}; wanted 4 to 1024 pixels")

    def measure(self, who: Contestant, bench: Bench) -> list[Figure]:
        """Top-1, mAP or R2 for every share of the labels."""
        kind, out = bench.train.kind, []
        for share in self.shares:
            which = None
            if share < 1.0:
                truth = bench.train.targets if kind == "classes" else torch.zeros(len(bench.train), dtype=torch.int64)
                which = torch.from_numpy(draw_labels(truth, float(share), bench.seed, 0))
            n = len(bench.train) if which is None else len(which)
            batch = min(self.batch_size, n)
            steps = max(1, round(self.epochs * (n // batch)))
            net, config, grown = self._tuned(who, bench, which, batch, n // batch, steps)
            text = (
                f"finetune: the whole encoder and one linear layer, {100 * share:g} % of the labels (n={n}), {steps:,} steps of "
                f"{batch} ({self.epochs:g} epochs), SGD momentum {self.momentum}, learning rate {self.lr} with a cosine to 0, weight "
                f"decay {self.weight_decay}, mixup {self.mixup}, crops of {self.scale[0]} to {self.scale[1]} of the area, flip "
                f"{self.flip}{grown}{f', views of {self.size} px' if self.size else ''}, last step, seed {bench.seed}; not frozen"
            )
            predicted = predicted_of(kind, scores_of(net, config, bench.test, bench, self.size))
            called = "finetune" if share == 1.0 else f"finetune {100 * share:g} %"
            out += figures(text, called, kind, predicted, bench.test.targets, {"steps": steps, "labels": n})
        return out

    def _tuned(
        self, who: Contestant, bench: Bench, which: Tensor | None, batch: int, epoch: int, steps: int
    ) -> tuple[Classifier, EncoderConfig, str]:
        """(the encoder tuned, how it is described, what was done before as the protocol says it)."""
        views = (View(scale=self.scale, ratio=(1.0, 1.0), flip=self.flip, jitter=0.0, grayscale=0.0, blur=0.0),)
        tune = partial(train_with_labels, views=views, batch_size=batch, bench=bench, which=which, size=self.size)
        net, config, head, grown = copy.deepcopy(who.module), who.config, None, ""
        if self.grow == "whole" and config.depth is not None:
            whole = replace(config, depth=None)
            full = fresh_encoder(net, whole, bench.seed)
            known = regrow(net, full).copied
            config = replace(whole, features=count_features(full, whole.in_channels, whole.size))
            freeze(full, known, self.batch_norm)
            warm_up = max(1, round(self.warm_epochs * epoch))
            constant = SGD(Constant(self.warm_lr), self.momentum, self.weight_decay, 0.0, "none", nesterov=False)
            head = tune(full, config, bench.train, optimizer=constant, steps=warm_up, seed=derive(bench.seed, "grow")).head
            unfreeze(full, known)
            net = full
            grown = (
                f", before that {warm_up:,} steps of what was added to the {who.config.depth} stages, at {self.warm_lr} and the others "
                f"frozen, whose statistics {'move' if self.batch_norm == 'moves' else 'are fixed'}"
            )
        optimizer = SGD(self.lr, self.momentum, self.weight_decay, 0.0, "none", nesterov=False)
        seed = derive(bench.seed, "finetune")
        tuned = tune(net, config, bench.train, optimizer=optimizer, steps=steps, seed=seed, mixup=self.mixup, head=head)
        return tuned, config, grown


@dataclass(frozen=True)
class Supervised:
    """What the same encoder comes to with labels: from fresh weights, in the run's own views, optimizer, batch and steps.

    Source: the baseline of Tomasev et al., 2022 (ReLICv2) and of Cao and Wu, 2021 (S3L).
    """

    kinds: ClassVar[tuple[Kind, ...]] = SORTS
    contestants: ClassVar[tuple[str, ...]] = ("encoder",)

    def measure(self, who: Contestant, bench: Bench) -> list[Figure]:
        """Top-1, mAP or R2 of its own linear layer.

        Raises:
            UsageError: how the encoder was trained is not known.
        """
        training = who.training
        if training is None:
            raise UsageError(
                "supervised needs to know how the encoder was trained, which the folder of a finished run tells; "
                "wanted a run folder, or leave supervised out"
            )
        net = supervised(who, bench.train, bench, training, bench.seed)
        batch = min(training.batch_size, len(bench.train))
        first = "".join(f"{one.steps:,} steps at {one.size} px, " for one in training.before)
        text = (
            f"supervised: {who.config.architecture} from fresh weights with labels, {first}{training.steps:,} steps of {batch} in the run's own "
            f"{len(training.views)} views, {training.optimizer}, last step, seed {bench.seed}; not frozen"
        )
        kind = bench.train.kind
        predicted = predicted_of(kind, scores_of(net, who.config, bench.test, bench))
        return figures(text, "supervised", kind, predicted, bench.test.targets, {"steps": training.steps})
