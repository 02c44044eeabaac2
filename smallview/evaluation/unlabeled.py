"""The protocol `label_free`: what features tell of themselves, for pictures without labels or to set beside a labeled figure.

Legend: N pictures, V views of each, F features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from smallview.errors import DataError
from smallview.evaluation import label_free as scores
from smallview.evaluation.bench import Bench, Contestant
from smallview.evaluation.metrics import Figure, Kind
from smallview.networks.modes import evaluating
from smallview.records import Batch
from smallview.seeds import derive, generator
from smallview.views.making import ViewMaker
from smallview.views.view import View

FEWEST = 16
DIRECTION = {
    "rankme": "higher",
    "alpha_req": "nearer to 1",
    "nesum": "higher",
    "lidar": "higher",
    "learnability": "higher",
    "dimension": "higher",
    "alignment": "lower",
    "uniformity": "lower",
    "stability": "higher",
}
RECOMMENDED = "stability"  # the one that went with linear accuracy: docs/evaluation.md
VIEW = View()  # the same for every encoder: by its own views, one that was trained on weak ones would look stable


@dataclass(frozen=True)
class LabelFree:
    """Scores without labels on the test pictures' features: their rank, their spectrum, and how views of a picture meet.

    pictures: drawn from the test part where it has more. views: of each picture, with the default view, whatever the encoder was
    trained on. k: neighbours that should stay. Which of them to trust: docs/evaluation.md has their measured rank correlation with
    linear accuracy.
    """

    pictures: int = 2000
    views: int = 8
    k: int = 10

    kinds: ClassVar[tuple[Kind, ...]] = ()
    contestants: ClassVar[tuple[str, ...]] = ("encoder", "untrained")

    def __post_init__(self) -> None:
        if self.pictures < FEWEST or self.views < 2 or self.k < 1:
            raise ValueError(
                f"pictures, views and k are {self.pictures}, {self.views} and {self.k}; wanted {FEWEST}, 2 and 1 or more"
            )

    def measure(self, who: Contestant, bench: Bench) -> list[Figure]:
        """One figure per score.

        Raises:
            DataError: too few pictures.
        """
        n = min(self.pictures, len(bench.test))
        if n < max(FEWEST, self.k + 1):
            raise DataError(
                f"{bench.test.name} has {n} pictures; label_free wants {max(FEWEST, self.k + 1)} or more to tell anything"
            )
        which = np.sort(generator(bench.seed, "label_free").permutation(len(bench.test))[:n]).astype(np.int64)
        plain = bench.features(who, bench.test)[torch.from_numpy(which)]
        seen = self.seen(who, bench, which)
        asked: dict[str, Callable[[], float]] = {
            "rankme": lambda: scores.rank_me(plain),
            "alpha_req": lambda: scores.alpha_req(plain),
            "nesum": lambda: scores.nesum(plain),
            "lidar": lambda: scores.lidar(seen),
            "learnability": lambda: scores.cluster_learnability(plain, seed=bench.seed),
            "dimension": lambda: scores.intrinsic_dimension(plain),
            "alignment": lambda: scores.alignment(seen),
            "uniformity": lambda: scores.uniformity(plain),
            "stability": lambda: scores.neighbour_stability(seen[0], seen[1], self.k),
        }
        found: dict[str, float] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # k-means complains of pictures that have one embedding
            for name, score in asked.items():
                try:
                    found[name] = score()
                except ValueError as error:  # a collapsed encoder has no spectrum to speak of, and the other scores say so
                    bench.say(f"label_free: {who.name}: no {name}: {error}")
        text = (
            f"label_free: {n:,} test pictures (seed {bench.seed}), features ({who.config.features}) of their centre views, and of {self.views} "
            f"views each ({VIEW}) for lidar, alignment and stability (k={self.k}); no label is used"
        )
        return [
            Figure(
                f"{text}; {DIRECTION[name]} is said to be better",
                f"label_free {name}",
                round(value, 6),
                {"better": DIRECTION[name], "pictures": n, **({"recommended": True} if name == RECOMMENDED else {})},
            )
            for name, value in found.items()
        ]

    @torch.no_grad()
    def seen(self, who: Contestant, bench: Bench, which: np.ndarray) -> Tensor:
        """Features [V, N, F] of disturbed views, the same views for every contestant."""
        config, device = who.config, torch.device(bench.device)
        maker = ViewMaker(
            *(bench.test.pictures, (VIEW,), config.size, config.mean, config.std, derive(bench.seed, "label_free views")),
            device,
            bench.threads,
        )
        who.module.to(device, memory_format=bench.memory_format)  # type: ignore[call-overload]
        out = []
        with evaluating(who.module):
            for epoch in range(self.views):
                parts = []
                for start in range(0, len(which), 256):
                    (made,) = maker(Batch(which[start : start + 256], epoch, step=0))
                    images = made.images.to(device).contiguous(memory_format=bench.memory_format)
                    parts.append(who.module(images).float().cpu())
                out.append(torch.cat(parts))
        return torch.stack(out)
