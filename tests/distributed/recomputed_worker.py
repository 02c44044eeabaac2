"""What every process of test_memory.py computes: one training step of a net with BatchNorm over processes, plain and computed again."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from smallview.collectives import rank
from smallview.networks.batch_norm import synchronize
from smallview.networks.encoders import build_encoder
from smallview.networks.heads import MLP
from smallview.networks.online_target import Passes, plain
from smallview.training.memory import Recomputed


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    encoder, config = build_encoder("resnet18", size=16)
    torch.manual_seed(0)
    nets = torch.nn.ModuleList([encoder, MLP((16,), 8).build(config.features)]).train()
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(rank()))

    def step(passes: Passes) -> dict[str, torch.Tensor]:
        mine = synchronize(copy.deepcopy(nets))
        z = x
        for net in mine:
            z = passes(net, z)
        loss = z.square().mean()
        loss.backward()
        out = {name: p.grad for name, p in mine.named_parameters() if p.grad is not None}
        return {**out, **dict(mine.named_buffers()), "loss": loss.detach()}

    torch.save([step(plain), step(Recomputed())], folder / f"{rank()}.pt")
    # without it some runs of gloo abort on the way out
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
