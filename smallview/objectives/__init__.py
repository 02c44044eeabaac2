"""The papers' mathematics: plain functions for anyone's loop, and terms and negatives as values."""

from smallview.objectives.alignment import Alignment, byol
from smallview.objectives.contrastive import InfoNCE, info_nce, nt_xent
from smallview.objectives.negatives import InBatch, Negatives, NoNegatives, Queue

__all__ = ["Alignment", "InBatch", "InfoNCE", "Negatives", "NoNegatives", "Queue", "byol", "info_nce", "nt_xent"]
