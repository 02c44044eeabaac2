"""The state of a training: one record, and its tensors are the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smallview.networks.online_target import Networks
from smallview.training.processes import among_processes


@dataclass
class TrainState:
    """All that the next step needs; its tensors are the checkpoint."""

    networks: Networks
    optimizer: torch.optim.Optimizer
    bank: dict[str, Tensor]
    step: int = 0
    skipped: int = 0

    def __post_init__(self) -> None:
        # walking the modules at every step costs a small net on a GPU a tenth of it
        self.buffers = list(self.networks.buffers())
        self.model = among_processes(self.networks)

    def trained(self) -> list[Tensor]:
        """What the optimizer moves."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name: weights, statistics, target, optimizer state, bank."""
        out = {f"networks.{name}": value for name, value in self.networks.state_dict().items()}
        out |= {f"bank.{name}": value for name, value in self.bank.items()}
        for i, parameter in enumerate(self.trained()):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    out[f"optimizer.{i}.{name}"] = value
        return out

    def load(self, tensors: dict[str, Tensor], step: int, skipped: int = 0) -> None:
        """Take over the tensors of a checkpoint; each lands on its device in its layout."""
        prefix = "networks."
        self.networks.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}, strict=True)
        self.bank = {name: tensors[f"bank.{name}"].to(value.device) for name, value in self.bank.items()}
        for i, parameter in enumerate(self.trained()):
            start = f"optimizer.{i}."
            for key, value in tensors.items():
                if key.startswith(start):
                    # fused steps walk raw memory: a buffer must lie in memory exactly as its parameter does
                    same = value.shape == parameter.shape
                    own = torch.empty_like(parameter) if same else torch.empty_like(value, device=parameter.device)
                    self.optimizer.state[parameter][key[len(start) :]] = own.copy_(value)
        self.step, self.skipped = step, skipped
