"""What every process of test_collectives.py computes. One process alone computes the reference with the same functions.

Gradients are of the sum of all processes' losses; each process divides its own by their number, as averaging would.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from smallview.collectives import first, gather, mean, rank, total, world
from smallview.networks.batch_norm import synchronize

B = 6
Results = dict[str, Any]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def part(x: Tensor, dim: int = 0) -> Tensor:
    """This process's share, as a tensor of its own that takes gradients."""
    return x.chunk(world(), dim)[rank()].clone().requires_grad_()


def gathered(dim: int) -> Results:
    x = part(random(B, B, seed=1), dim)
    joined = gather(x, dim)
    similar = joined.sin() @ joined
    similar.square().mean().backward()
    return {"joined": joined.detach(), "gradient": x.grad / world()}


def summed() -> Results:
    x = part(random(B, 4, seed=2))
    s = total((x**2).sum(0))
    (s.sin() * random(4, seed=3)).sum().backward()
    return {"total": s.detach(), "gradient": x.grad / world()}


def from_first() -> Results:
    x = random(3, 4, seed=4).requires_grad_() if rank() == 0 else None
    given = first(x, (3, 4), random(1))
    rows = part(random(B, 4, seed=5))
    all_rows = gather(rows)
    (all_rows @ given.T).exp().mean().backward()
    out = {"given": given.detach(), "rows": rows.grad / world()}
    return out if x is None else {**out, "gradient": x.grad / world()}


def without_gradient() -> Results:
    bits = torch.arange(B) % 3 == 0
    numbers = torch.arange(2 * B).view(2, B)
    x = part(random(B, 2, seed=6))
    fixed = first(random(3, seed=7) if rank() == 0 else None, (3,), torch.zeros(1))
    return {
        "bool": gather(bits.chunk(world())[rank()]),
        "int": gather(numbers.chunk(world(), 1)[rank()], -1),
        "half": gather(part(random(B, 2, seed=6)).bfloat16()).detach(),
        "total of int": total(numbers.chunk(world(), 1)[rank()].sum()),
        "mean": mean(x.mean(0)),
        "asks for gradient": [mean(x).requires_grad, fixed.requires_grad],
        "fixed": fixed,
        "transposed": gather(random(4, B, seed=8).T.chunk(world())[rank()]),
    }


def message(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def refused() -> Results:
    """Only meant for several processes: what they disagree on. All of them go on afterwards."""
    mine = rank()
    return {
        "rows": message(lambda: gather(torch.zeros(3 + mine, 2))),
        "dimensions": message(lambda: gather(torch.zeros((3, 2, 1)[: 1 + mine]))),
        "dtype": message(lambda: gather(torch.zeros(3, dtype=torch.bfloat16 if mine else torch.float16))),
        "nothing": message(lambda: first(None, (3,), torch.zeros(1))),
        "shape": message(lambda: first(torch.zeros(4), (3,), torch.zeros(1))),
        "fine": gather(torch.full((1,), mine)),
    }


class Net(nn.Module):
    """All three kinds of layers, and the options that BatchNorm has."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 5, 3, bias=False),
            BatchNormAct2d(5, momentum=None, act_layer=nn.SiLU),
        )
        self.head = nn.Sequential(
            nn.Linear(5, 6),
            nn.BatchNorm1d(6, track_running_stats=False),
            nn.ReLU(),
            nn.Linear(6, 4),
            nn.BatchNorm1d(4, affine=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).mean((2, 3)))
        return out


def trained(synchronized: bool = True, join: Callable[[Tensor], Tensor] = gather) -> Results:
    """Two steps' forward passes and the gradients of one; a loss of all pairs, so that each row matters to each other."""
    torch.manual_seed(0)
    net = Net().double()
    if synchronized:
        synchronize(net)
    for step in range(2):
        net.zero_grad()
        rows = join(net(random(B, 3, 8, 8, seed=10 + step).chunk(world())[rank()]))
        loss = (rows @ rows.T / 2).logsumexp(1).mean() + 0.1 * (rows * random(B, 4, seed=9)).sum()
        loss.backward()
    net.eval()
    return {
        "loss": loss.detach(),
        "gradients": {name: mean(p.grad) for name, p in net.named_parameters()},
        "own": {name: p.grad.clone() for name, p in net.named_parameters()},
        "state": {name: value.clone() for name, value in net.state_dict().items()},
        "evaluated": net(random(2, 3, 8, 8, seed=12)).detach(),
    }


def uneven(*shape: int) -> Results:
    """One row on process 0 and five on the other; each layer over both."""
    torch.manual_seed(0)
    layer = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(shape) - 1](shape[0]).double()
    nn.init.normal_(layer.weight)
    synchronize(layer)
    mine = slice(0, B) if world() == 1 else (slice(0, 1), slice(1, B))[rank()]
    x = random(B, *shape, seed=20)[mine].requires_grad_()
    out = layer(x)
    total((out.sin() * random(B, *shape, seed=21)[mine]).sum()).backward()
    return {
        "out": out.detach(),
        "x": x.grad / world(),
        "weight": mean(layer.weight.grad),
        "bias": mean(layer.bias.grad),
        "state": dict(layer.state_dict()),
    }


def narrow() -> Results:
    """float32 far from zero, and bfloat16."""
    far = nn.BatchNorm1d(3)
    half = nn.BatchNorm2d(3)
    synchronize(nn.ModuleList([far, half]))
    return {
        "far": far((1000.0 + 0.1 * random(512, 3, seed=30)).float().chunk(world())[rank()]).detach(),
        "variance": far.running_var,
        "half": half(random(8, 3, 5, 5, seed=31).bfloat16().chunk(world())[rank()]).detach(),
    }


def own_part_alone(x: Tensor) -> Tensor:
    """The usual repair of that: the gradient of the own rows alone."""
    rows = list(gather(x.detach()).chunk(world()))
    rows[rank()] = x
    return torch.cat(rows)


def results() -> Results:
    return {
        "gather 0": gathered(0),
        "gather 1": gathered(1),
        "gather -1": gathered(-1),
        "total": summed(),
        "first": from_first(),
        "without gradient": without_gradient(),
        "trained": trained(),
        "uneven [B, F]": uneven(3),
        "uneven [B, F, X]": uneven(3, 2),
        "uneven [B, F, H, W]": uneven(3, 4, 5),
        "uneven [B, F, X, H, W]": uneven(3, 2, 2, 3),
        "narrow": narrow(),
    }


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    out = {
        **results(),
        "refused": refused(),
        "plain BatchNorm": trained(synchronized=False),
        "own rows": trained(join=own_part_alone),
        "place": [rank(), world()],
    }
    torch.save(out, folder / f"{rank()}.pt")
    # without it some runs of gloo abort on the way out
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
