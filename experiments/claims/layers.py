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
    """The probe by layer: the features, the map before the last, the projector's ends, and all by name."""
    rows = smallview.evaluate(run, data.train, data.test, "layers", leaks=False, threads=scale.threads)
    found = {row.metric.split(" ")[1]: row for row in rows if row.metric.startswith("layers ")}
    maps = [name for name in found if not name.startswith("projector") and name not in ("pixels", "features")]
    head = [name for name in found if name.startswith("projector")]
    features = found["features"]
    return {
        **{name: found[name].value for name in (*maps, "features", *head)},
        "linear": features.value,
        "linear untrained": features.floor_untrained,
        "linear pixels": features.floor_pixels,
        "before": found[maps[-2]].value,  # the features are the average of the last map
        "head first": found[head[0]].value,
        "head last": found[head[-1]].value,
    }


CLAIM = Claim(
    "layers",
    "Which layer",
    "The projector's output is worse than the features before it, by tens of points (Bordes et al., 2022, on which FFCV-SSL builds).",
    arms,
    against="simclr",
    found="By 4.5 to 6.6 points here in all eight runs, not by tens; the projector's first layer is as good as the features (-1.8 to +0.9). The "
    "features, the average of the last map, are 1.6 to 4.9 points above the map before it, with every method.",
    columns={
        "features, linear %": "linear",
        "the map before the last": "before",
        "projector's first": "head first",
        "projector's last": "head last",
    },
    judge=every_layer,
)

if __name__ == "__main__":
    main(CLAIM)
