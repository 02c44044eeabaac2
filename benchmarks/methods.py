"""Every method at equal views on CIFAR-10: what it learns in a few CPU minutes, and what a step costs beside SimCLR's.

    SMALLVIEW_DATA=... python benchmarks/methods.py --views 240000 --out runs/methods
    python benchmarks/methods.py --speed

SMALLVIEW_DATA is a folder with the CIFAR-10 reader `load.py`. The first 10,000 training pictures, the 10,000 test pictures, one encoder for
all methods (--encoder), both floors under the same protocol. A view is a view, whatever its size. One JSON line per method.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from cifar10_road import read_cifar10

import smallview
from smallview.evaluation.features import extract, pixel_side, raw_pixels
from smallview.evaluation.judge import untrained
from smallview.evaluation.knn import knn_predict
from smallview.evaluation.linear import fit_linear
from smallview.evaluation.metrics import accuracy
from smallview.evaluation.subject import open_labeled, open_subject
from smallview.networks.encoders import build_encoder
from smallview.networks.online_target import Networks
from smallview.records import ViewBatch
from smallview.training.cost import encoder_passes
from smallview.training.loop import train_step
from smallview.training.precision import Precision, keep_big_blocks
from smallview.training.state import TrainState
from smallview.views.saliency import per_picture
from smallview.views.view import pixels


def border_mask(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Foreground where the colour lies farther from the border's colours than two standard deviations: a stand-in for saliency."""
    border = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3), picture[:, :2].reshape(-1, 3)])
    mean, spread = border.mean(0), np.cov(border.T) + 25.0 * np.eye(3)
    away = picture.reshape(-1, 3) - mean
    distance = np.sqrt(np.einsum("ij,jk,ik->i", away, np.linalg.inv(spread), away))
    return (distance > 2.0).reshape(picture.shape[:2])


class Judge:
    """Both floors once, then every encoder under the same protocol."""

    def __init__(self, data: Any, seed: int) -> None:
        self.data, self.seed, self.floors = data, seed, dict[str, dict[str, float]]()

    def __call__(self, folder: Path) -> dict[str, float]:
        train_x, train_y, test_x, test_y = self.data
        subject = open_subject(folder)
        train, test = open_labeled((train_x, train_y), (test_x, test_y), subject.config)

        def figures(x: torch.Tensor, z: torch.Tensor) -> dict[str, float]:
            y, t = torch.from_numpy(train.labels).long(), torch.from_numpy(test.labels).long()
            near = {f"knn{k}": accuracy(knn_predict(x, y, z, k=k, temperature=0.07, classes=10), t) for k in (20, 200)}
            linear = accuracy(fit_linear(x, y, 10, seed=self.seed).predict(z), t)
            return {name: round(value, 2) for name, value in {**near, "linear": linear}.items()}

        def features(net: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
            a, b = (extract(net, subject.config, part.pictures, threads=1) for part in (train, test))
            return a, b

        if not self.floors:
            side = pixel_side(subject.config.size, train.pictures, test.pictures)
            self.floors["pixels"] = figures(raw_pixels(train.pictures, side), raw_pixels(test.pictures, side))
            self.floors["untrained"] = figures(*features(untrained(subject, train.pictures, self.seed)))
        return figures(*features(subject.encoder))


def learn(given: argparse.Namespace) -> None:
    """Train and judge every method asked for."""
    data = read_cifar10()
    judge = Judge(data, given.seed)
    for name in given.method or smallview.methods():
        chosen = smallview.preset(name)
        masks = per_picture(border_mask) if any(view.mask_background for view in chosen.method.views) else None
        started = time.monotonic()
        run = smallview.pretrain(
            data[0],
            name,
            encoder=given.encoder,
            epochs=given.views / (len(data[0]) * len(chosen.method.views)),
            seed=given.seed,
            dtype=given.dtype,
            threads=given.threads,
            out=given.out / f"{name}-{given.views}-seed{given.seed}",
            masks=masks,
            quiet=True,
            sets=dict(pair.split("=", 1) for pair in given.set),
        )
        wall = time.monotonic() - started
        cost = json.loads((run.path / "summary.json").read_text())["cost"]
        with torch.random.fork_rng(devices=[]):
            torch.set_num_threads(given.threads)
            found = judge(run.path)
        told = {"method": name, "seed": given.seed, "views": given.views, "figures": found, "floors": judge.floors}
        least = min(found[m] - max(floor[m] for floor in judge.floors.values()) for m in found)
        passes = round(encoder_passes(chosen.method), 2)
        told |= {
            "least_above_floors": round(least, 2),
            "steps": cost["steps"],
            "wall_seconds": round(wall, 1),
            "passes": passes,
        }
        print(json.dumps(told), flush=True)


def speed(given: argparse.Namespace) -> None:
    """Views per second of a training step beside SimCLR's at the same batch: interleaved, the median of paired ratios."""
    keep_big_blocks()
    torch.set_num_threads(given.threads)
    device, batch, size = torch.device("cpu"), given.batch_size, 32
    net, described = build_encoder(given.encoder, in_channels=3, size=size)
    precision = Precision("channels_last", given.dtype, "given")

    def arm(name: str) -> Callable[[], float]:
        chosen = smallview.preset(name)
        networks = Networks(copy.deepcopy(net), described.features, chosen.method.heads, chosen.method.target).train()
        precision.place(networks, device)
        source = torch.Generator().manual_seed(0)

        def cut(pictures: tuple[int, ...], patches: int, scale: tuple[float, float]) -> torch.Tensor:
            return torch.randn(len(pictures) * patches, 3, size, size, generator=source)

        bank = chosen.method.negatives.init(0, chosen.method.heads.projector.out, device, cut)
        state = TrainState(networks, chosen.optimizer.build(networks, device), bank)
        sides = [pixels(view.size, size, 0.5) for view in chosen.method.views]
        views = tuple(
            ViewBatch(torch.randn(batch, 3, side, side, generator=source), view.seen_by)
            for view, side in zip(chosen.method.views, sides, strict=True)
        )

        def step() -> float:
            began = time.perf_counter()
            train_step(
                state, chosen.method, views, progress=0.5, lr=1e-4, seed=0, total_steps=1000, precision=precision, device=device
            )
            state.step += 1
            return len(views) * batch / (time.perf_counter() - began)

        return step

    reference = arm("simclr")
    for name in given.method or smallview.methods():
        step = arm(name)
        step(), reference()
        ratios = [step() / reference() for _ in range(given.rounds)]
        told = {"method": name, "views_per_second_vs_simclr": round(statistics.median(ratios), 3)}
        told |= {"from": round(min(ratios), 3), "to": round(max(ratios), 3), "rounds": given.rounds, "batch": batch}
        print(json.dumps(told), flush=True)


def main() -> None:
    """Learn, or measure speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--method", action="append", choices=smallview.methods())
    parser.add_argument("--encoder", default="dense_small")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--views", type=int, default=240_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256)
    given = parser.parse_args()
    (speed if given.speed else learn)(given)


if __name__ == "__main__":
    main()
