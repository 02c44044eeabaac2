"""Contrast with an explicit term against what disturbs, and all ideas at once."""

from __future__ import annotations

from dataclasses import replace

from smallview.joint_embedding import Method, Term
from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum
from smallview.objectives import EqCo, InBatch, InfoNCE, NearestSmoothing, RelicInvariance
from smallview.optimizers import AdamW
from smallview.presets.record import Preset
from smallview.presets.usual_views import SOLARIZED, STRONG
from smallview.schedules import Cosine, Ramp
from smallview.views.view import View


def relic() -> Preset:
    """ReLIC: contrast, and a penalty where a disturbance changes who is similar. Cost 8/3."""
    return Preset(
        method=Method(
            views=(STRONG, SOLARIZED),
            heads=Heads(projector=MLP(hidden=(512,), out=128)),
            target=Momentum(momentum=Cosine(0.99, 1.0)),
            negatives=InBatch(views="positive"),
            objective={
                "contrastive": Term(1.0, InfoNCE(temperature=0.2)),
                "invariance": Term(1.0, RelicInvariance(temperature=0.2, convention="four_tensors")),
            },
        ),
        optimizer=AdamW(lr=2e-3),
        source="Mitrovic et al., 2020: Representation Learning via Invariant Causal Mechanisms",
        status="reconstructed",
        uncertain=("optimizer", "method.heads", "method.views", "method.target", "method.negatives", "method.objective"),
    )


def relic_v2() -> Preset:
    """ReLICv2: ReLIC on four large and two small views, some backgrounds masked. Cost 5.7.

    Masks of the foreground are by the border's colour unless given: docs/saliency.md. Small views are seen by the online network only;
    pairs of one view count; about ten negatives per query. What else the authors set is not known: alpha, temperature and crop areas
    are ours.
    """
    base = relic()
    large = [replace(view, mask_background=0.1) for view in (STRONG, SOLARIZED, STRONG, SOLARIZED)]
    small = replace(STRONG, size=3 / 7, scale=(0.05, 0.3), seen_by="online")
    return replace(
        base,
        method=replace(
            base.method,
            views=(*large, small, small),
            negatives=InBatch(10, views="positive"),
            objective={
                "contrastive": Term(1.0, InfoNCE(temperature=0.2, same_view=True)),
                "invariance": Term(1.0, RelicInvariance(temperature=0.2, same_view=True)),
            },
        ),
        source="Tomasev et al., 2022: Pushing the Limits of Self-Supervised ResNets (ReLICv2)",
    )


def combined() -> Preset:
    """EqCo, smoothing, ReLIC, small views, masks and growing resolution at once. Cost 2.5.

    Masks of the foreground are by the border's colour unless given: docs/saliency.md.
    """
    large = View(size=Ramp(0.5, 1.0, until=0.6), mask_background=0.1)
    small = View(size=0.5, scale=(0.05, 0.3), seen_by="online")
    contrastive = InfoNCE(0.2, margin=EqCo(alpha=256), soft_targets=NearestSmoothing(0.1, nearest=4))
    method = Method(
        views=(large, large, small, small),
        heads=Heads(MLP(hidden=(512,), out=128)),
        target=Momentum(0.99),
        negatives=InBatch(16, views="positive"),
        objective={"contrastive": Term(1.0, contrastive), "invariance": Term(1.0, RelicInvariance(0.2))},
    )
    return Preset(method, AdamW(lr=2e-3), "smallview: five papers in one method", "adapted", ("method", "optimizer"))
