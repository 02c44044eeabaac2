"""Few negatives, small batches, plain views: EqCo and FFCV-SSL."""

from __future__ import annotations

from dataclasses import replace

from smallview.joint_embedding import Term
from smallview.networks.heads import MLP, Heads
from smallview.objectives import EqCo, Fixed, InBatch, InfoNCE
from smallview.optimizers import AdamW
from smallview.presets.record import Preset
from smallview.presets.repelling import moco_v2, simclr
from smallview.presets.usual_views import WHOLE


def simo() -> Preset:
    """SiMo: MoCo v2 without the queue; EqCo lets a few keys do for hundreds. Cost 4/3.

    Keys of the same batch, worth alpha negatives by a margin. The authors' recipe: ResNet-50, 200 epochs, SGD 0.03 at 256 queries,
    momentum 0.999, alpha 256. The abstract's claim is 4 negatives at MoCo v2's level; 16 are kept here.
    """
    base = moco_v2()
    return replace(
        base,
        method=replace(
            base.method,
            negatives=InBatch(16, views="positive"),
            objective={"contrastive": Term(1.0, InfoNCE(temperature=0.2, margin=EqCo(alpha=256)))},
        ),
        source="Zhu et al., 2020: EqCo, Equivalent Rules for Self-Supervised Contrastive Learning",
        uncertain=("optimizer", "method.target.momentum", "method.negatives.per_query", "method.heads"),
    )


def simclr_small_batch() -> Preset:
    """SimCLR with 32 pictures a step: a larger base rate than linear scaling. Cost 2.

    From the authors' code: temperature 0.15, and base rates that double from batch 2048 to 256. The square-root rule does as much.
    """
    base = simclr()
    return replace(
        base,
        method=replace(base.method, objective={"contrastive": Term(1.0, InfoNCE(temperature=0.15))}),
        optimizer=AdamW(lr=2e-3, batch_rule="sqrt"),
        source="Bordes, Balestriero and Vincent, 2023: Towards Democratizing Joint-Embedding Self-Supervised Learning",
        uncertain=("optimizer", "method.heads.projector.hidden", "batch_size"),
        batch_size=32,
    )


def simclr_one_patch() -> Preset:
    """SimCLR whose only negative is one patch of one picture. Embedded anew at each step. Cost 2.

    The abstract says that this learns useful representations; how the patch was cut is not known. One negative keeps no two pictures
    apart: without BatchNorm behind the projector all of them meet in one point opposite the patch,
    and at temperatures above 0.1 they come too near to each other (docs/methods.md).
    """
    base = simclr()
    heads = Heads(projector=MLP(hidden=(512,), out=128, last_batch_norm=True))
    return replace(
        base,
        method=replace(
            base.method,
            heads=heads,
            negatives=Fixed(pictures=(0,), patches=1),
            objective={"contrastive": Term(1.0, InfoNCE(temperature=0.1))},
        ),
        source="Bordes, Balestriero and Vincent, 2023: Towards Democratizing Joint-Embedding Self-Supervised Learning",
        status="reconstructed",
        uncertain=("optimizer", "method.heads", "method.negatives", "method.objective.contrastive.loss.temperature"),
    )


def simclr_noise_only() -> Preset:
    """SimCLR whose views are the whole picture with Gaussian noise. No crop, no colour, no flip. Cost 2.

    The abstract says that this learns useful representations; the authors' strength of noise is not known.
    """
    base = simclr()
    noisy = replace(WHOLE, noise=0.2)
    return replace(
        base,
        method=replace(base.method, views=(noisy, noisy)),
        source="Bordes, Balestriero and Vincent, 2023: Towards Democratizing Joint-Embedding Self-Supervised Learning",
        status="reconstructed",
        uncertain=("optimizer", "method.heads", "method.views", "method.objective.contrastive.loss.temperature"),
    )
