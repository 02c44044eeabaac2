"""How good an encoder gets in a few minutes on this machine: a ladder of recipes, each another one with one change.

    SMALLVIEW_DATA=... python experiments/records/ladder.py --track cifar10 --minutes 5 --out runs/records      # 5.5 minutes a step and seed
    SMALLVIEW_DATA=... python experiments/records/ladder.py --track cifar10 --minutes 5 --steps "patches|dcl" --seeds 0,1,2 --out runs/records
    SMALLVIEW_DATA=... python experiments/records/ladder.py --track cifar10_resnet18 --minutes 1 --out runs/records    # on a GPU: 90 seconds a step
    python experiments/records/ladder.py --miniature

Rules. Pictures: all training pictures of the set, without labels. Encoder: any, up to 1,024 features; ResNet-18 with the small stem on the track
that is named after it, which wants a GPU. The clock: `--minutes` of training, of which
three seconds are kept for the fit of a dictionary, where there is one; not the reading of the pictures into memory, nor the
judgement. Judged after the last step, on all test pictures, one centre view each: the linear probe and kNN as `smallview evaluate`
has them, the penalty chosen on training pictures. No test picture and no label is seen before. A step's line in the ledger names
machine, versions, FLOPs, pictures seen and seconds. A call that was stopped goes on where it was; `--list` tells the steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import lightly

import smallview
from smallview import ledger
from smallview.networks.patches import NAME, Dictionary
from smallview.views.view import View

EXPERIMENT = "record"
SMALL_FIRST = "Steps((0.5, 1.0), (0.7,))"
DENSE = "dense_small:48-96-192-512"
MOST_FEATURES = 1024
FIT = 0.05  # minutes
RESNET = {"method": "simclr", "encoder": "resnet18", "batch_size": 1024}
PER_SECOND = (
    29_336  # pictures that the loop of SimCLR trained with resnet18 at 32 px, 1,024 at a time, on an H200: docs/speed.md
)
SMALL_ENCODERS = {True: "patches:8-12", False: "dense_small:8-16"}  # for the miniature, with and without a dictionary


@dataclass(frozen=True)
class Step:
    """A recipe, and what it changes in which other one.

    closed: what is fitted and not trained, as `patches alone` is. peer: trained by another library's loop, on this encoder.
    """

    name: str
    change: str
    of: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    sets: Mapping[str, Any] = field(default_factory=dict)
    closed: bool = False
    peer: str = ""

    def said(self) -> dict[str, Any]:
        """All settings as plain values."""
        settings = {**self.given, **self.sets, **({"encoder": self.peer} if self.peer else {})}
        return {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in settings.items()}


def crops(n: int, scale: tuple[float, float] = (0.1, 0.6)) -> tuple[View, ...]:
    """So many views, none of which is alone the large one."""
    return tuple(View(scale=scale) for _ in range(n))


STEPS = (
    Step("lightly", "the loop of lightly's SimCLR tutorial, dense_small", peer="dense_small"),
    Step("default", "`smallview pretrain --minutes` and no other setting"),
    Step("plain", "the preset `simclr`: two views, dense_small", "", {"method": "simclr", "encoder": "dense_small"}),
    Step(
        "small first",
        "views of half the size for 70 % of the steps",
        "plain",
        {"method": "simclr", "encoder": "dense_small", "resolution": SMALL_FIRST},
    ),
    Step("dcl", "decoupled loss", "small first", {"method": "dcl", "encoder": "dense_small", "resolution": SMALL_FIRST}),
    Step("wide", "four wider layers instead of five", "dcl", {"method": "dcl", "resolution": SMALL_FIRST, "encoder": DENSE}),
    Step(
        "four views",
        "four views of a picture, each against each",
        "wide",
        {"method": "dcl", "resolution": SMALL_FIRST, "encoder": DENSE},
        {"method.views": crops(4)},
    ),
    Step(
        "patches, SimCLR",
        "a dictionary of patches as first layer",
        "small first",
        {"method": "simclr", "resolution": SMALL_FIRST, "encoder": "patches"},
    ),
    Step("patches alone", "a dictionary of 256 patches in quarters; nothing is trained", "", closed=True),
    Step(
        "patches",
        "a dictionary of patches as first layer",
        "dcl",
        {"method": "dcl", "resolution": SMALL_FIRST, "encoder": "patches"},
    ),
    Step(
        "patches, three layers",
        "one layer more",
        "patches",
        {"method": "dcl", "resolution": SMALL_FIRST, "encoder": "patches:128-192-384-512"},
    ),
    Step(
        "patches, four views",
        "four views of a picture",
        "patches",
        {"method": "dcl", "resolution": SMALL_FIRST, "encoder": "patches"},
        {"method.views": crops(4)},
    ),
    Step(
        "patches, Muon",
        "Muon instead of AdamW",
        "patches",
        {"method": "dcl", "resolution": SMALL_FIRST, "encoder": "patches"},
        {"optimizer": "Muon()"},
    ),
    Step(
        "patches, half size",
        "views of half the size all the time",
        "patches",
        {"method": "dcl", "resolution": "0.5", "encoder": "patches"},
    ),
    Step(
        "patches, ReSSL",
        "soft targets from a weak view",
        "patches",
        {"method": "ressl", "resolution": SMALL_FIRST, "encoder": "patches"},
    ),
)

ON_RESNET = (
    Step("resnet18", "the preset `simclr`, batches of 1,024", "", RESNET),
    Step(
        "resnet18, small first",
        "views of half the size for 70 % of the steps",
        "resnet18",
        {**RESNET, "resolution": SMALL_FIRST},
    ),
    Step("resnet18, half size", "views of half the size all the time", "resnet18", {**RESNET, "resolution": "0.5"}),
    Step(
        "resnet18, dcl",
        "decoupled loss",
        "resnet18, small first",
        {**RESNET, "method": "dcl", "resolution": SMALL_FIRST},
    ),
    Step(
        "resnet18, four views",
        "four views of a picture, each against each",
        "resnet18, dcl",
        {**RESNET, "method": "dcl", "resolution": SMALL_FIRST},
        {"method.views": crops(4)},
    ),
    Step(
        "resnet18, Muon",
        "Muon instead of AdamW",
        "resnet18, dcl",
        {**RESNET, "method": "dcl", "resolution": SMALL_FIRST},
        {"optimizer": "Muon()"},
    ),
    Step(
        "resnet18, ReSSL",
        "soft targets from a weak view",
        "resnet18, small first",
        {**RESNET, "method": "ressl", "resolution": SMALL_FIRST},
    ),
)


@dataclass(frozen=True)
class Track:
    """A set, the steps of its ladder, and the kind of machine that they are measured on, the ledger's `scale`."""

    data: str
    steps: tuple[Step, ...]
    scale: str = "cpu"

    def expects(self, minutes: float) -> str:
        """What the first step is expected to come to; for a CPU the ledger says."""
        if self.scale == "cpu":
            return ""
        epochs = 60.0 * minutes * PER_SECOND / 50_000
        return f"{self.steps[0].name} is expected to see {epochs:.0f} epochs in {minutes:g} min on an H200"


TRACKS = {
    "cifar10": Track("cifar10", STEPS),
    "fashion_mnist": Track("fashion_mnist", STEPS),
    "cifar10_resnet18": Track("cifar10", ON_RESNET, "gpu"),
}


@dataclass(frozen=True)
class Pictures:
    """Training and test pictures with their labels, which the training never sees."""

    x: Any
    y: Any
    test_x: Any
    test_y: Any


def read(data: str, miniature: bool) -> Pictures:
    """A set's pictures; made ones for the miniature."""
    if miniature:
        random = np.random.default_rng(0)
        y = np.arange(160) % 4
        x = np.clip(random.normal(60 + 40 * y[:, None, None, None], 50, (160, 12, 12, 3)), 0, 255).astype(np.uint8)
        return Pictures(x[:100], y[:100], x[100:], y[100:])
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from shared_pictures import reader

    load = reader()
    return Pictures(*(load.cifar10((1, 2, 3, 4, 5)) if data == "cifar10" else load.fashion_mnist()))


class Quarters(torch.nn.Module):
    """A dictionary's maps averaged over quarters: [B, C, S, S] -> [B, 4 K]."""

    def __init__(self, dictionary: Dictionary) -> None:
        super().__init__()
        self.dictionary = dictionary

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features [B, 4 K]."""
        return torch.nn.functional.adaptive_avg_pool2d(self.dictionary(images), 2).flatten(1)


def closed(pictures: Pictures, seed: int, words: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The dictionary alone, fitted on pictures as `evaluate` shows them to a module, and what that took."""
    begun = time.monotonic()
    chosen = np.random.default_rng(seed).permutation(len(pictures.x))[:2000]
    images = torch.from_numpy(np.atleast_3d(pictures.x[chosen]) if pictures.x.ndim == 4 else pictures.x[chosen][..., None])
    dictionary = Dictionary(images.shape[3], words)
    dictionary.fit((images.permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.25, seed)
    return Quarters(dictionary), {"train_seconds": round(time.monotonic() - begun, 1), "parameters": dictionary.kernels.numel()}


def measured(
    step: Step, pictures: Pictures, track: Track, minutes: float, seed: int, out: Path, miniature: bool
) -> ledger.Entry:
    """One run, judged."""
    threads = 1 if miniature else None
    if step.closed:
        what, cost = closed(pictures, seed, 8 if miniature else MOST_FEATURES // 4)
        size: dict[str, Any] = {"size": pictures.x.shape[1]}
    elif step.peer:
        what, cost = lightly(pictures.x, SMALL_ENCODERS[False] if miniature else step.peer, minutes, seed)
        size = {"size": pictures.x.shape[1]}
    else:
        folder = out / f"{track.data}-{step.name.replace(' ', '-')}-{minutes:g}-{seed}"
        given, fitted = dict(step.given), str(step.given.get("encoder", NAME)).startswith(NAME)
        if miniature:
            given |= {"encoder": SMALL_ENCODERS[fitted], **({"batch_size": 32} if "batch_size" in given else {})}
        length = max(minutes - FIT * fitted, 0.5 * minutes)
        what = smallview.pretrain(
            pictures.x, minutes=length, seed=seed, sets=dict(step.sets), out=folder, threads=threads, quiet=True, **given
        ).path
        cost, size = json.loads((what / "summary.json").read_text())["cost"], {}
    rows = smallview.evaluate(
        what, (pictures.x, pictures.y), (pictures.test_x, pictures.test_y), "knn,linear", leaks=False, threads=threads, **size
    )
    found: dict[str, float] = {}
    for row in rows:
        name = row.metric.split()[0]
        if name in ("knn20", "linear"):
            floors = {f"{name} untrained": row.floor_untrained, f"{name} pixels": row.floor_pixels}
            found |= {name: row.value, **{key: value for key, value in floors.items() if value is not None}}
    settings = {"minutes": minutes, **step.said()}
    return ledger.entry(
        EXPERIMENT, step.name, settings, track.data, seed, cost, found, "miniature" if miniature else track.scale
    )


def main() -> None:
    """Run the steps that are missing, and print the ladder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--track", choices=tuple(TRACKS), default="cifar10")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", default="", help="names with | between; all by default")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--miniature", action="store_true")
    asked = parser.parse_args()
    track = TRACKS[asked.track]
    if asked.list:
        for step in track.steps:
            print(f"{step.name}: {step.change}" + f", from {step.of}" * bool(step.of))
        if expected := track.expects(asked.minutes):
            print(expected)
        return
    if track.scale == "gpu" and not asked.miniature and not torch.cuda.is_available():
        sys.exit(f"--track {asked.track} is measured on a GPU and torch sees none; --miniature shows that its steps run")
    minutes = 0.005 if asked.miniature else asked.minutes
    names = asked.steps.split("|") if asked.steps else [step.name for step in track.steps]
    unknown = set(names) - {step.name for step in track.steps}
    if unknown:
        sys.exit(f"no step is called {', '.join(sorted(unknown))}; --list tells them")
    with tempfile.TemporaryDirectory() as scratch:
        out = asked.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        path = out / "ledger.jsonl"
        pictures = read(track.data, asked.miniature)
        for seed in map(int, asked.seeds.split(",")):
            for step in track.steps:
                known = ledger.read(path, EXPERIMENT) if path.exists() else []
                done = {(e.arm, e.data, e.seed, e.settings["minutes"]) for e in known}
                if step.name in names and (step.name, track.data, seed, minutes) not in done:
                    try:
                        one = measured(step, pictures, track, minutes, seed, out, asked.miniature)
                    except ImportError as error:
                        print(f"left out: {step.name}: {error}")
                        continue
                    ledger.append(path, [one])
                    print(json.dumps({"step": one.arm, "seed": seed, **one.rows, **one.cost}), flush=True)


if __name__ == "__main__":
    main()
