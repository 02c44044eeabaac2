"""Methods without negatives."""

from __future__ import annotations

from dataclasses import replace

from smallview.joint_embedding import Method, Term
from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum, Shared
from smallview.objectives import (
    Alignment,
    BarlowTwins,
    CentreInvariance,
    Covariance,
    MeanSquared,
    NoNegatives,
    SIGReg,
    Variance,
)
from smallview.optimizers import SGD, AdamW
from smallview.presets.record import Preset
from smallview.presets.usual_views import SOLARIZED, STRONG
from smallview.schedules import Cosine
from smallview.views.view import View


def byol() -> Preset:
    """BYOL: predict the momentum target's embedding of the other view. Nothing repels. Cost 8/3."""
    strong = View(saturation=0.2)
    return Preset(
        method=Method(
            views=(strong, replace(strong, solarize=0.2)),
            heads=Heads(projector=MLP(hidden=(1024,), out=256), predictor=MLP(hidden=(1024,), out=256)),
            target=Momentum(momentum=Cosine(0.96, 1.0)),
            negatives=NoNegatives(),
            objective={"alignment": Term(1.0, Alignment())},
        ),
        optimizer=SGD(lr=0.3),
        source="Grill et al., 2020: Bootstrap Your Own Latent",
        status="adapted",
        uncertain=("optimizer", "method.target.momentum", "method.heads", "method.views"),
    )


def simsiam() -> Preset:
    """SimSiam: BYOL without momentum; the gradient stops at the target side. Cost 2.

    The authors' mean of two negative cosines is the mean of 2 - 2 cos at half weight, less a constant.
    """
    return Preset(
        method=Method(
            views=(View(), View()),
            heads=Heads(MLP(hidden=(512, 512), out=512, last_batch_norm=True), MLP(hidden=(128,), out=512)),
            target=Shared(stop_gradient=True),
            negatives=NoNegatives(),
            objective={"alignment": Term(0.5, Alignment(directions="mean"))},
        ),
        optimizer=SGD(lr=0.1),
        source="Chen and He, 2021: Exploring Simple Siamese Representation Learning",
        status="adapted",
        uncertain=("optimizer", "method.heads"),
    )


def barlow_twins() -> Preset:
    """Barlow Twins: the views' cross-correlation shall be the identity matrix. Cost 2."""
    return Preset(
        method=Method(
            views=(STRONG, SOLARIZED),
            heads=Heads(projector=MLP(hidden=(1024, 1024), out=1024)),
            target=Shared(),
            negatives=NoNegatives(),
            objective={"redundancy": Term(1.0, BarlowTwins(off_diagonal=0.0051))},
        ),
        optimizer=AdamW(lr=2e-3),
        source="Zbontar et al., 2021: Barlow Twins, Self-Supervised Learning via Redundancy Reduction",
        status="adapted",
        uncertain=("optimizer", "method.heads"),
    )


def vicreg() -> Preset:
    """VICReg: views meet, every dimension varies, no two dimensions tell the same. Cost 2.

    Weights 25, 25 and 1 with the variance term halved over the two views, as in the authors' code.
    """
    return Preset(
        method=Method(
            views=(STRONG, SOLARIZED),
            heads=Heads(projector=MLP(hidden=(1024, 1024), out=1024)),
            target=Shared(),
            negatives=NoNegatives(),
            objective={
                "invariance": Term(25.0, MeanSquared()),
                "variance": Term(25.0, Variance()),
                "covariance": Term(1.0, Covariance()),
            },
        ),
        optimizer=AdamW(lr=2e-3),
        source="Bardes, Ponce and LeCun, 2022: VICReg",
        status="adapted",
        uncertain=("optimizer", "method.heads"),
    )


def lejepa() -> Preset:
    """LeJEPA: views meet at their centre, embeddings are pulled to a Gaussian. Seen from random directions. Cost 2.

    No target, no stop-gradient, no negatives: one weight between the two terms.
    """
    return Preset(
        method=Method(
            views=(STRONG, SOLARIZED),
            heads=Heads(projector=MLP(hidden=(512, 512), out=64)),
            target=Shared(),
            negatives=NoNegatives(),
            objective={"invariance": Term(0.95, CentreInvariance()), "gaussian": Term(0.05, SIGReg(slices=256))},
        ),
        optimizer=AdamW(lr=2e-3),
        source="Balestriero and LeCun, 2025: LeJEPA, Provable and Scalable Self-Supervised Learning Without the Heuristics",
        status="adapted",
        uncertain=("optimizer", "method.heads", "method.views", "method.objective.gaussian.weight"),
    )
