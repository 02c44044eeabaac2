"""What every process of test_steps_distributed.py trains: ten steps of every preset in float64, on real views of the same pictures."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from presets_worker import Tiny, small

from smallview import collectives
from smallview.data.loading import batches
from smallview.data.masking import find_foregrounds, masks_of_array
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.networks.batch_norm import synchronize
from smallview.networks.online_target import Networks
from smallview.optimizers import learning_rate
from smallview.parts import views_ahead
from smallview.presets import PRESETS, Preset
from smallview.records import Batch, ViewBatch
from smallview.training.loop import StepReport, train
from smallview.training.precision import Precision
from smallview.training.processes import joined
from smallview.training.state import TrainState
from smallview.views.making import ViewMaker

PICTURES, B, SIZE, STEPS, SEED = 44, 20, 16, 10, 3
CPU = torch.device("cpu")
Results = dict[str, Any]


def pictures() -> np.ndarray:
    """Blobs of colour, each picture its own."""
    source = np.random.default_rng(0)
    coarse = source.integers(0, 256, (PICTURES, 4, 4, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 6, 6, 1), np.uint8))


def trained(preset: Preset, steps: int = STEPS, synchronized: bool = True) -> Results:
    pack = open_pack(open_source(pictures()), short_side=SIZE, kind="raw")
    method = small(preset.method)
    left_half = np.zeros((PICTURES, 24, 24), bool)
    left_half[:, :, :12] = True
    fronts, _ = find_foregrounds(pack, masks_of_array(left_half, PICTURES), (0.0, 1.0))
    maker = ViewMaker(pack, method.views, SIZE, (0.5,) * 3, (0.25,) * 3, SEED, CPU, foregrounds=fronts)

    def cut(chosen: tuple[int, ...], patches: int, scale: tuple[float, float]) -> torch.Tensor:
        source = torch.Generator().manual_seed(1)
        return torch.randn(len(chosen) * patches, 3, SIZE, SIZE, generator=source, dtype=torch.float64)

    torch.manual_seed(1)
    networks = Networks(Tiny(), 8, method.heads, method.target).double()
    if synchronized:
        synchronize(networks)
    bank = method.negatives.init(SEED, method.heads.projector.out, CPU, cut)
    bank = {name: value.double() if value.is_floating_point() else value for name, value in bank.items()}
    # plain steps: a moment divided by its root would turn the last digit of a tiny gradient into a whole step
    optimizer = replace(preset.optimizer, lr=0.05) if hasattr(preset.optimizer, "nesterov") else preset.optimizer
    state = TrainState(networks, optimizer.build(networks, CPU), bank)
    served: list[tuple[int, list[int], str]] = []
    reports: list[StepReport] = []

    def feed() -> Iterator[tuple[Batch, tuple[ViewBatch, ...]]]:
        order = batches(len(pack), B, SEED, 0, steps, total_steps=steps)
        for batch, views in views_ahead(maker, B, order):
            every = [collectives.gather(view.images) for view in views]
            digest = hashlib.sha256(b"".join(images.contiguous().numpy().tobytes() for images in every)).hexdigest()
            served.append((batch.epoch, batch.index.tolist(), digest))
            yield batch, tuple(ViewBatch(view.images.double(), view.seen_by) for view in views)

    train(
        state,
        method,
        feed(),
        total_steps=steps,
        lr=learning_rate(optimizer, B),
        seed=SEED,
        precision=Precision("channels_first", "float32", ""),
        device=CPU,
        on_step=lambda report: bool(reports.append(report)),
    )
    return {
        "losses": torch.tensor([report.done.loss for report in reports], dtype=torch.float64),
        "gradients": torch.tensor([report.done.gradient for report in reports], dtype=torch.float64),
        "served": served,
        "state": {name: value.clone() for name, value in state.tensors().items()},
    }


def results() -> dict[str, Results]:
    return {name: trained(make()) for name, make in PRESETS.items()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with joined("cpu"):
        out = {"results": results(), "plain BatchNorm": trained(PRESETS["simclr"](), synchronized=False)}
        torch.save(out, folder / f"{collectives.world()}-{collectives.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
