"""The papers' mathematics: plain functions for anyone's loop, and terms and negatives as values."""

from smallview.objectives.alignment import Alignment, byol
from smallview.objectives.contrastive import InfoNCE, info_nce, nt_xent
from smallview.objectives.denominators import Debiased, Decoupled, Full
from smallview.objectives.gaussian import CentreInvariance, SIGReg, sigreg
from smallview.objectives.margins import EqCo, NoMargin
from smallview.objectives.negatives import Fixed, InBatch, Negatives, NoNegatives, Queue
from smallview.objectives.redundancy import BarlowTwins, Covariance, MeanSquared, Variance, barlow_twins, vicreg
from smallview.objectives.relational import Relational, ressl
from smallview.objectives.relic import RelicInvariance, relic
from smallview.objectives.soft_targets import NearestSmoothing, OneHot, UniformSmoothing

__all__ = [
    "Alignment",
    "BarlowTwins",
    "CentreInvariance",
    "Covariance",
    "Debiased",
    "Decoupled",
    "EqCo",
    "Fixed",
    "Full",
    "InBatch",
    "InfoNCE",
    "MeanSquared",
    "NearestSmoothing",
    "Negatives",
    "NoMargin",
    "NoNegatives",
    "OneHot",
    "Queue",
    "Relational",
    "RelicInvariance",
    "SIGReg",
    "UniformSmoothing",
    "Variance",
    "barlow_twins",
    "byol",
    "info_nce",
    "nt_xent",
    "relic",
    "ressl",
    "sigreg",
    "vicreg",
]
