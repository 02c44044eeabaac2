"""Which layer should one use? A linear probe behind every stage of the encoder and every layer of the projector.

    SMALLVIEW_DATA=... python experiments/claims/layers.py --out runs/claims     # 8 runs
    python experiments/claims/layers.py --scale miniature

Four methods, judged on what they were trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grid import Arm, Claim, Pictures, Scale, main

import smallview


def arms(scale: Scale) -> Sequence[Arm]:
    """Methods."""
    return [Arm(name, name) for name in ("simclr", "moco_v2", "byol", "barlow_twins")]


def every_layer(run: Path, data: Pictures, scale: Scale) -> dict[str, float]:
    """The probe by layer: the last of the encoder and of the projector, and all by name."""
    rows = smallview.evaluate(run, data.train, data.test, "layers", leaks=False, threads=scale.threads)
    found = {row.metric.split(" ")[1]: row for row in rows if row.metric.startswith("layers ")}
    encoder = [name for name in found if not name.startswith("projector") and name != "pixels"]
    head = [name for name in found if name.startswith("projector")]
    out = {name: found[name].value for name in (*encoder, *head)}
    best = max(encoder, key=lambda name: found[name].value)
    return {
        **out,
        "last": found[encoder[-1]].value,
        "last untrained": found[encoder[-1]].floor_untrained,
        "last pixels": found[encoder[-1]].floor_pixels,
        "before": found[encoder[-2]].value,
        "best": found[best].value,
        "head first": found[head[0]].value,
        "head last": found[head[-1]].value,
    }


CLAIM = Claim(
    "layers",
    "Which layer",
    "The projector's output is worse than the features before it, by tens of points (Bordes et al., 2022, on which FFCV-SSL builds).",
    arms,
    against="simclr",
    columns={
        "encoder's last, linear %": "last",
        "its last but one": "before",
        "projector's first": "head first",
        "projector's last": "head last",
    },
    judge=every_layer,
)

if __name__ == "__main__":
    main(CLAIM)
