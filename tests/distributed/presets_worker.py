"""What every process of test_presets_distributed.py computes, for every preset. One process alone computes the reference with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smallview import collectives
from smallview.joint_embedding import Method, compute_loss
from smallview.networks.batch_norm import synchronize
from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Networks
from smallview.presets import PRESETS
from smallview.records import ViewBatch
from smallview.views.view import pixels

# enough pictures that those methods that draw a few negatives really draw
B, SIZE, PROGRESS, KEY = 20, 16, 0.5, (3, 5)
Results = dict[str, Any]


class Tiny(nn.Module):
    """An encoder of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 2))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.body(images).mean((2, 3))
        return out


def narrow(mlp: MLP) -> MLP:
    return replace(mlp, hidden=tuple(min(width, 24) for width in mlp.hidden), out=min(mlp.out, 16))


def small(method: Method) -> Method:
    predictor = method.heads.predictor
    return replace(method, heads=Heads(narrow(method.heads.projector), None if predictor is None else narrow(predictor)))


def views_of(method: Method) -> list[ViewBatch]:
    """This process's share of views that are the same for any number of processes."""
    source = torch.Generator().manual_seed(0)
    picture = torch.randn(B, 3, 1, 1, generator=source, dtype=torch.float64)
    out = []
    for view in method.views:
        side = pixels(view.size, SIZE, PROGRESS)
        images = picture + torch.randn(B, 3, side, side, generator=source, dtype=torch.float64)
        out.append(ViewBatch(images.chunk(collectives.world())[collectives.rank()], view.seen_by))
    return out


def cut(pictures: tuple[int, ...], patches: int, scale: tuple[float, float]) -> Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randn(len(pictures) * patches, 3, SIZE, SIZE, generator=source, dtype=torch.float64)


def computed(method: Method, synchronized: bool = True) -> Results:
    method = small(method)
    torch.manual_seed(1 + 10 * collectives.rank())  # nobody's stream of random numbers matters after the networks are made
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        networks = Networks(Tiny(), 8, method.heads, method.target).double().train()
        if networks.target is not None:  # as after some steps: the target is no copy
            for p in networks.target.parameters():
                p.data += 0.1 * torch.randn_like(p)
    if synchronized:
        synchronize(networks)
    bank = method.negatives.init(KEY[0], method.heads.projector.out, torch.device("cpu"), cut)
    bank = {name: value.double() if value.is_floating_point() else value for name, value in bank.items()}
    loss, losses, bank, embeddings = compute_loss(method, networks, bank, views_of(method), PROGRESS, KEY)
    loss.backward()
    own = {name: p.grad for name, p in networks.named_parameters() if p.grad is not None}
    candidates = embeddings.candidates
    return {
        "loss": loss.detach(),
        "losses": {name: value.detach() for name, value in losses.items()},
        "gradients": {name: collectives.mean(gradient) for name, gradient in own.items()},
        "own": own,
        "bank": bank,
        "networks": networks.state_dict(),
        "online": embeddings.online.detach(),
        "target": embeddings.target.detach(),
        "candidates": None
        if candidates is None
        else {name: None if value is None else value.detach() for name, value in vars(candidates).items()},
    }


def results() -> dict[str, Results]:
    return {name: computed(make().method) for name, make in PRESETS.items()}


def mistaken(gather: Callable[[Tensor, int], Tensor], synchronized: bool = True) -> Results:
    """SimCLR with another way to gather."""
    right, collectives.gather = collectives.gather, gather
    try:
        return computed(PRESETS["simclr"]().method, synchronized)
    finally:
        collectives.gather = right


def mistakes() -> dict[str, Results]:
    right = collectives.gather
    calls: list[Tensor] = []

    def keys_without_gradient(x: Tensor, dim: int = 0) -> Tensor:
        calls.append(x)
        return right(x if len(calls) == 1 else x.detach(), dim)

    def own_rows(x: Tensor, dim: int = 0) -> Tensor:
        parts = list(right(x.detach(), dim).chunk(collectives.world(), dim))
        parts[collectives.rank()] = x
        return torch.cat(parts, dim)

    return {
        "gradient of the own rows alone": mistaken(own_rows),
        "keys without gradient": mistaken(keys_without_gradient),
        "nothing gathered": mistaken(lambda x, dim=0: x),
        "plain BatchNorm": mistaken(right, synchronized=False),
    }


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.save({"results": results(), "mistakes": mistakes()}, folder / f"{collectives.rank()}.pt")
    # without it some runs of gloo abort on the way out
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
