"""Training with labels: the linear layer on a frozen encoder, the fine-tuned encoder, and the supervised baseline, in one loop.

Legend: N pictures, B a batch, F features, K classes or labels, D numbers, C channels, S the side of a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallview.data.loading import batches
from smallview.errors import DivergedError
from smallview.evaluation.bench import Bench, Contestant, Labeled
from smallview.evaluation.features import Training, fresh_encoder
from smallview.evaluation.linear import standardisation
from smallview.evaluation.metrics import Kind
from smallview.networks.encoders import EncoderConfig, count_features
from smallview.networks.growing import grow
from smallview.networks.modes import evaluating
from smallview.networks.truncating import regrow
from smallview.optimizers import Optimizer, learning_rate
from smallview.seeds import derive, generator
from smallview.views.making import ViewMaker, centre_views
from smallview.views.view import View


class Classifier(nn.Module):
    """An encoder with one linear layer: images [B, C, S, S] -> scores [B, K]. A frozen encoder stays in evaluation mode.

    offset and scale [K]: what the layer's outputs are moved and stretched by, so that numbers to predict have the size of 1 for it.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, encoder: nn.Module, head: nn.Linear, frozen: bool, offset: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.encoder, self.head, self.frozen = encoder, head, frozen
        self.register_buffer("offset", offset)
        self.register_buffer("scale", scale)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of classes or labels, or the numbers themselves."""
        if self.frozen:
            with torch.no_grad(), evaluating(self.encoder):
                features = self.encoder(images)
        else:
            features = self.encoder(images)
        scores: Tensor = self.head(features) * self.scale + self.offset
        return scores


def loss_of(kind: Kind, scores: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of classes, mean logistic loss of labels, mean squared error of numbers in units of `scale`."""
    if kind == "classes":
        return F.cross_entropy(scores, target)
    if kind == "labels":
        return F.binary_cross_entropy_with_logits(scores, target.to(scores.dtype))
    return F.mse_loss(scores / scale, target.to(scores.dtype) / scale)


def mixed(
    kind: Kind, images: Tensor, target: Tensor, amount: float, draw: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, float]:
    """(images, target, other target, share): each picture mixed with another of the batch, one share for all.

    amount: both parameters of the beta distribution that the share is drawn from; 0 mixes nothing.

    Source: Zhang et al., 2018 (mixup); one share for a batch as in S3L's fine-tuning.
    """
    if amount <= 0.0:
        return images, target, target, 1.0
    share = float(draw.beta(amount, amount))
    other = torch.from_numpy(draw.permutation(len(images))).to(images.device)
    return share * images + (1.0 - share) * images[other], target, target[other], share


@torch.random.fork_rng(devices=[])
def train_with_labels(
    encoder: nn.Module,
    config: EncoderConfig,
    part: Labeled,
    *,
    views: Sequence[View],
    optimizer: Optimizer,
    batch_size: int,
    steps: int,
    bench: Bench,
    seed: int,
    frozen: bool = False,
    mixup: float = 0.0,
    which: Tensor | None = None,
    size: int | None = None,
    head: nn.Linear | None = None,
) -> Classifier:
    """Train an encoder, or one linear layer on it, on labeled pictures; the encoder given is changed unless it is frozen.

    views: each picture is seen in all of them at every step, and the loss is their mean. which: positions of the pictures to train
    on. size: of the views, the encoder's own by default. head: a linear layer to go on with, a fresh one by default.
    Everything drawn is a function of `seed`.
    """
    device = torch.device(bench.device)
    where = np.arange(len(part)) if which is None else which.numpy()
    target = part.targets
    batch_size = min(batch_size, len(where))
    if head is None:
        torch.manual_seed(derive(seed, "head"))
        head = nn.Linear(config.features, bench.classes)
        if frozen:  # nothing is known yet
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
    offset, scale = torch.zeros(bench.classes), torch.ones(bench.classes)
    if part.kind == "numbers":
        offset, scale = standardisation(target[torch.from_numpy(where)])
    net = Classifier(encoder, head, frozen, offset, scale)
    net.to(device, memory_format=bench.memory_format)  # type: ignore[call-overload]
    trained: nn.Module = net.head if frozen else net
    built = optimizer.build(trained, device)
    lr = learning_rate(optimizer, batch_size)
    maker = ViewMaker(
        part.pictures, views, size or config.size, config.mean, config.std, derive(seed, "labelled"), device, bench.threads
    )
    net.train()
    dropped = [m for m in net.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    for step, batch in enumerate(batches(len(where), batch_size, derive(seed, "order"), 0, steps, total_steps=steps)):
        index = where[batch.index]
        made = maker(type(batch)(index, batch.epoch, batch.step, batch.progress))
        truth = target[torch.from_numpy(index)].to(device)
        if dropped:
            torch.manual_seed(derive(seed, "dropout", step))
        draw = generator(seed, "mixup", step)
        for group in built.param_groups:
            group["lr"] = lr.at(batch.progress)
        built.zero_grad(set_to_none=True)
        for view in made:
            images = view.images.to(device).contiguous(memory_format=bench.memory_format)
            images, one, other, share = mixed(part.kind, images, truth, mixup, draw)
            scores = net(images)
            loss = share * loss_of(part.kind, scores, one, net.scale)
            if share < 1.0:
                loss = loss + (1.0 - share) * loss_of(part.kind, scores, other, net.scale)
            (loss / len(made)).backward()
        built.step()
        if step % 50 == 49 and step + 1 < steps:
            bench.say(f"{step + 1:,} of {steps:,} steps with labels")
    return net.eval()


def supervised(who: Contestant, part: Labeled, bench: Bench, training: Training, seed: int) -> Classifier:
    """The same encoder from fresh weights, trained with labels: the run's own views, optimizer, batch and number of steps.

    A run of stages is followed stage by stage, its sizes and depths too; each begins its optimizer and its learning rate anew. Views keep
    their backgrounds: masks belong to the run's own pictures.
    """
    net: Classifier | None = None
    stages = (*training.before, training)
    for k, one in enumerate(stages):
        config = replace(who.config, architecture=one.encoder or who.config.architecture, depth=one.depth)
        encoder = fresh_encoder(who.module, config, seed)
        size = one.size or config.size
        config = replace(config, features=count_features(encoder, config.in_channels, size))
        if net is not None:
            carry(net.encoder, encoder, derive(seed, "growth", k))
        net = train_with_labels(
            *(encoder, config, part),
            views=tuple(replace(view, mask_background=0.0) for view in one.views),
            optimizer=one.optimizer,
            batch_size=one.batch_size,
            steps=one.steps,
            bench=bench,
            seed=derive(seed, "supervised") if k == 0 else derive(seed, "supervised", k),
            size=size,
        )
    assert net is not None, "there is one stage at least"
    return net


def carry(old: nn.Module, new: nn.Module, seed: int) -> None:
    """Give an encoder what an earlier one has learned: the same one, one without its last stages, or one that grows into it.

    Raises:
        UsageError: none of these.
    """
    if type(old) is type(new) and [(n, v.shape) for n, v in old.state_dict().items()] == [
        (n, v.shape) for n, v in new.state_dict().items()
    ]:
        new.load_state_dict(old.state_dict())
    elif set(old.state_dict()) < set(new.state_dict()) and all(
        new.state_dict()[name].shape == value.shape for name, value in old.state_dict().items()
    ):
        regrow(old, new)
    else:
        grow(old, new, seed)


@torch.no_grad()
def scores_of(net: nn.Module, config: EncoderConfig, part: Labeled, bench: Bench, size: int | None = None) -> Tensor:
    """Scores [N, K] of a part's centre views.

    Raises:
        DivergedError: scores that are not finite.
    """
    out = []
    with evaluating(net):
        for views in centre_views(part.pictures, size or config.size, config.mean, config.std, threads=bench.threads):
            images = views.to(bench.device).contiguous(memory_format=bench.memory_format)
            out.append(net(images).float().cpu())
    scores = torch.cat(out)
    if not bool(torch.isfinite(scores).all()):
        raise DivergedError("the training with labels diverged; wanted a smaller learning rate, as in --set finetune.lr=0.01")
    return scores
