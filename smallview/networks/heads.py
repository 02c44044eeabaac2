"""Heads as values: the MLPs behind the encoder whose output is an embedding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class MLP:
    """A stack of linear layers, hidden widths then the output width, with batch normalisation where said.

    hidden: widths of the hidden layers, each followed by BatchNorm (if `batch_norm`) and ReLU. out: width of the embedding.
    last_batch_norm: BatchNorm without scale and shift after the last layer.

    Example:
        >>> import torch
        >>> MLP(hidden=(64,), out=16).build(32)(torch.zeros(4, 32)).shape
        torch.Size([4, 16])
    """

    hidden: tuple[int, ...] = (512,)
    out: int = 128
    batch_norm: bool = True
    last_batch_norm: bool = False

    def __post_init__(self) -> None:
        if any(width < 1 for width in (*self.hidden, self.out)):
            raise ValueError(f"widths are {self.hidden} and {self.out}; wanted 1 or more")

    def build(self, in_features: int) -> nn.Sequential:
        """The network, [B, in_features] -> [B, out]."""
        layers: list[nn.Module] = []
        before = in_features
        for width in self.hidden:
            layers.append(nn.Linear(before, width, bias=not self.batch_norm))
            if self.batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(nn.ReLU(inplace=True))
            before = width
        layers.append(nn.Linear(before, self.out, bias=not self.last_batch_norm))
        if self.last_batch_norm:
            layers.append(nn.BatchNorm1d(self.out, affine=False))
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class Heads:
    """The projector behind the encoder, and the predictor behind the online projector, or none."""

    projector: MLP = MLP()
    predictor: MLP | None = None

    def __post_init__(self) -> None:
        if self.predictor is not None and self.predictor.out != self.projector.out:
            raise ValueError(
                f"the predictor gives {self.predictor.out} numbers and the projector {self.projector.out}; "
                "wanted equally many, for the one is compared with the other"
            )
