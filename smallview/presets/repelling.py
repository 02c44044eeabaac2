"""Methods in which a picture is told from other pictures."""

from __future__ import annotations

from dataclasses import replace

from smallview.joint_embedding import Method, Term
from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum, Shared
from smallview.objectives import Decoupled, InBatch, InfoNCE, Queue, Relational
from smallview.optimizers import AdamW
from smallview.presets.record import Preset
from smallview.presets.usual_views import SOLARIZED, STRONG, WEAK
from smallview.schedules import Cosine
from smallview.views.view import View


def simclr() -> Preset:
    """SimCLR: two views of a picture attract, the others of the batch repel. One shared network. Cost 2."""
    return Preset(
        method=Method(
            views=(View(), View()),
            heads=Heads(projector=MLP(hidden=(512,), out=128)),
            target=Shared(),
            negatives=InBatch(),
            objective={"contrastive": Term(1.0, InfoNCE(temperature=0.2))},
        ),
        optimizer=AdamW(lr=2e-3),
        source="Chen et al., 2020: A Simple Framework for Contrastive Learning of Visual Representations",
        status="adapted",
        uncertain=("optimizer", "method.heads.projector.hidden", "method.objective.contrastive.loss.temperature"),
    )


def dcl() -> Preset:
    """DCL: SimCLR without the positive in the denominator, for small batches. Decoupled contrastive learning. Cost 2."""
    base = simclr()
    return replace(
        base,
        method=replace(base.method, objective={"contrastive": Term(1.0, InfoNCE(0.1, denominator=Decoupled()))}),
        source="Yeh et al., 2022: Decoupled Contrastive Learning",
        uncertain=("optimizer", "method.heads.projector.hidden"),
    )


def moco_v2() -> Preset:
    """MoCo v2: queries against a queue of keys from a momentum target. Cost 4/3.

    Its head has BatchNorm here, the authors' has none.
    """
    return Preset(
        method=Method(
            views=(View(seen_by="online"), View(seen_by="target")),
            heads=Heads(projector=MLP(hidden=(512,), out=128)),
            target=Momentum(momentum=0.99),
            negatives=Queue(size=4096),
            objective={"contrastive": Term(1.0, InfoNCE(temperature=0.2))},
        ),
        optimizer=AdamW(lr=2e-3),
        source="Chen et al., 2020: Improved Baselines with Momentum Contrastive Learning",
        status="adapted",
        uncertain=("optimizer", "method.target.momentum", "method.negatives.size", "method.heads"),
    )


def moco_v3() -> Preset:
    """MoCo v3: no queue; a predictor, and the keys of the same batch repel. Both directions, keys of the other view. Cost 8/3.

    The loss is scaled by twice the temperature and summed over directions, as the authors do.
    """
    return Preset(
        method=Method(
            views=(STRONG, SOLARIZED),
            heads=Heads(
                MLP(hidden=(512, 512), out=128, last_batch_norm=True), MLP(hidden=(512,), out=128, last_batch_norm=True)
            ),
            target=Momentum(momentum=Cosine(0.99, 1.0)),
            negatives=InBatch(views="positive"),
            objective={"contrastive": Term(2 * 0.2, InfoNCE(temperature=0.2, directions="sum"))},
        ),
        optimizer=AdamW(lr=2e-3),
        source="Chen, Xie and He, 2021: An Empirical Study of Training Self-Supervised Vision Transformers",
        status="adapted",
        uncertain=("optimizer", "method.target.momentum", "method.heads"),
    )


def ressl() -> Preset:
    """ReSSL: resemble the queue's entries as the target's weak view does. Cost 4/3."""
    return Preset(
        method=Method(
            views=(View(seen_by="online"), replace(WEAK, seen_by="target")),
            heads=Heads(projector=MLP(hidden=(512,), out=128)),
            target=Momentum(momentum=0.99),
            negatives=Queue(size=4096),
            objective={"relation": Term(1.0, Relational(temperature=0.1, target_temperature=0.04))},
        ),
        optimizer=AdamW(lr=2e-3),
        source="Zheng et al., 2021: ReSSL, Relational Self-Supervised Learning with Weak Augmentation",
        status="adapted",
        uncertain=("optimizer", "method.heads.projector.hidden"),
    )
