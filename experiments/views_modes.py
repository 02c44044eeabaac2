"""Fast views against torchvision's own: what the algebra of `fast` costs in linear accuracy at the same compute.

    SMALLVIEW_DATA=... python experiments/views_modes.py                 # CIFAR-10, SimCLR, 5 paired seeds
    python experiments/views_modes.py --miniature                        # generated pictures, seconds; shows that it runs

Two runs of one seed differ in nothing but `mode`: the same pictures in the same order, the same weights at the start, the same steps.
Judged by the linear probe on frozen features, all training labels. Printed: a JSON line per pair, then the mean difference and its
one-sided 95 % bound (t over the pairs).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from smallview.data.loading import batches
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.evaluation.linear import fit_linear
from smallview.networks.encoders import build_encoder
from smallview.networks.modes import evaluating
from smallview.networks.online_target import Networks
from smallview.optimizers import learning_rate
from smallview.presets import preset
from smallview.seeds import derive
from smallview.training.loop import train
from smallview.training.precision import Precision, keep_big_blocks
from smallview.training.prefetch import ahead
from smallview.training.state import TrainState
from smallview.views.making import ViewMaker, centre_views
from smallview.views.sampling import Mode

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
T_95 = {2: 6.314, 3: 2.920, 4: 2.353, 5: 2.132, 6: 2.015, 7: 1.943, 8: 1.895, 9: 1.860, 10: 1.833}
Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Budget:
    """How much every run may train."""

    steps: int
    batch_size: int
    dtype: str


def cifar10() -> tuple[Array, Array, Array, Array]:
    sys.path.insert(0, os.environ["SMALLVIEW_DATA"])
    import load

    found: tuple[Array, Array, Array, Array] = load.cifar10()
    return found


def miniature() -> tuple[Array, Array, Array, Array]:
    random = np.random.default_rng(0)
    labels = np.arange(400) % 4
    pictures = np.clip(random.normal(50 + 50 * labels[:, None, None, None], 30, (400, 16, 16, 3)), 0, 255).astype(np.uint8)
    return pictures[:300], labels[:300].astype(np.uint8), pictures[300:], labels[300:].astype(np.uint8)


def accuracy(data: tuple[Array, Array, Array, Array], mode: Mode, seed: int, budget: Budget) -> float:
    """Linear accuracy, percent, of an encoder trained with views of this mode."""
    train_x, train_y, test_x, test_y = data
    device, size = torch.device("cpu"), train_x.shape[1]
    chosen = preset("simclr")
    pack, judged = (open_pack(open_source(x), short_side=None) for x in (train_x, test_x))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "heads"))
        net, described = build_encoder("dense_small", size=size, seed=derive(seed, "encoder"))
        networks = Networks(net, described.features, chosen.method.heads, chosen.method.target)
    precision = Precision("channels_last", budget.dtype, "given")  # type: ignore[arg-type]
    precision.place(networks, device)
    state = TrainState(networks, chosen.optimizer.build(networks, device), {})
    maker = ViewMaker(pack, chosen.method.views, size, MEAN, STD, seed, mode=mode)
    order = batches(len(pack), budget.batch_size, seed, 0, budget.steps, total_steps=budget.steps)
    train(
        state, chosen.method, ahead(maker, order), total_steps=budget.steps, lr=learning_rate(chosen.optimizer, budget.batch_size),
        seed=seed, precision=precision, device=device, on_step=lambda report: False,
    )  # fmt: skip

    def features(which: object) -> torch.Tensor:
        with evaluating(networks.online.encoder), torch.inference_mode():
            views = centre_views(which, size, MEAN, STD)  # type: ignore[arg-type]
            return torch.cat([networks.online.encoder(x.contiguous(memory_format=torch.channels_last)).float() for x in views])

    x, y = features(pack).clone(), torch.from_numpy(train_y).long()
    probe = fit_linear(x, y, int(y.max()) + 1, seed=seed, penalties=(1e-3, 1e-2))
    return 100.0 * float((probe.predict(features(judged).clone()).numpy() == test_y).mean())


def main() -> None:
    """Run the pairs and print the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--miniature", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_big_blocks()
    data = miniature() if given.miniature else cifar10()
    budget = Budget(4, 64, "float32") if given.miniature else Budget(given.steps, given.batch_size, given.dtype)
    differences = []
    for seed in [int(s) for s in given.seeds.split(",")]:
        began = time.monotonic()
        found = {mode: accuracy(data, mode, seed, budget) for mode in ("fast", "parity")}
        differences.append(found["fast"] - found["parity"])
        told = {
            "seed": seed,
            **{mode: round(value, 2) for mode, value in found.items()},
            "difference": round(differences[-1], 2),
        }
        print(json.dumps({**told, "seconds": round(time.monotonic() - began, 1)}), flush=True)
    n = len(differences)
    summary: dict[str, object] = {"pairs": n, "mean_difference": round(statistics.fmean(differences), 3)}
    if n in T_95:
        half = T_95[n] * statistics.stdev(differences) / math.sqrt(n)
        summary["lower_95"] = round(statistics.fmean(differences) - half, 3)
    print(json.dumps({**summary, "steps": budget.steps, "batch_size": budget.batch_size, "dtype": budget.dtype}))


if __name__ == "__main__":
    main()
