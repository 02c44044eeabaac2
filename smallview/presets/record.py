"""What a preset is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smallview.joint_embedding import Method
from smallview.optimizers import LARS, SGD, AdamW, Muon


@dataclass(frozen=True)
class Preset:
    """A method with the settings its results depend on.

    encoder, batch_size, epochs: None leaves them to the defaults for the machine and the data. status says whether the settings
    are the authors' (published), adapted to small budgets, or put together because the authors' are not known (reconstructed);
    `uncertain` names the fields that are ours.
    """

    method: Method
    optimizer: SGD | AdamW | LARS | Muon
    source: str
    status: Literal["published", "adapted", "reconstructed"]
    uncertain: tuple[str, ...] = ()
    encoder: str | None = None
    batch_size: int | None = None
    epochs: float | None = None
