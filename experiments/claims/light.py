"""What makes MoCo work on light networks: each lever of the recipe on MobileNetV3, and the whole of it on EfficientNet-B0 and ResNet-18.

    SMALLVIEW_DATA=... python experiments/claims/light.py --out runs/claims     # 22 runs
    python experiments/claims/light.py --scale miniature

The baseline is MoCo v2 as it was tuned for ResNets: temperature 0.2, a head as wide as the features, one direction, half the rate, no warm-up. Each
arm adds a lever to the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from grid import Arm, Claim, Scale, main

LOSS = "method.objective.contrastive.loss"
BASE = {
    f"{LOSS}.temperature": 0.2,
    f"{LOSS}.soft_targets": "OneHot()",
    f"{LOSS}.directions": "mean",
    "method.views.0.seen_by": "online",
    "method.views.1.seen_by": "target",
    "method.heads.projector.hidden": "(1280,)",
    "optimizer.lr": 0.03,
    "optimizer.warmup": 0.0,
}
LEVERS: tuple[tuple[str, dict[str, object]], ...] = (
    ("MoCo v2", {}),
    ("+ temperature 0.1", {f"{LOSS}.temperature": 0.1}),
    ("+ head of 2048", {"method.heads.projector.hidden": "(2048,)"}),
    ("+ both directions", {f"{LOSS}.directions": "sum", "method.views.0.seen_by": "both", "method.views.1.seen_by": "both"}),
    ("+ twice the rate, warm-up", {"optimizer.lr": 0.06, "optimizer.warmup": 0.03}),
    ("+ smoothing", {f"{LOSS}.soft_targets": "NearestSmoothing(Delayed(0.2, until=0.03), 20)"}),
)
ENCODERS = {
    "MobileNetV3-Large": ("mobilenetv3_large_100", None),
    "EfficientNet-B0": ("efficientnet_b0", (0, 4, 5)),
    "ResNet-18": ("resnet18", (0, 4, 5)),
}


def arms(scale: Scale) -> Sequence[Arm]:
    """Levers, one after the other."""
    out = []
    for name, (encoder, shown) in ENCODERS.items():
        sets = dict(BASE)
        given = {"encoder": f"dense_small:8-{8 + len(out)}" if scale.name == "miniature" else encoder}
        for i, (lever, more) in enumerate(LEVERS):
            sets |= more
            if shown is None or i in shown:
                out.append(Arm(f"{name}: {lever}", "light_moco", dict(given), dict(sets)))
    return out


CLAIM = Claim(
    "light",
    "Light networks",
    "MoCo's weakness on light networks is one of its recipe, which temperature, head, directions, rate and smoothing mend without a teacher "
    "(Lin et al., 2022).",
    arms,
    against="MobileNetV3-Large: MoCo v2",
    settings=lambda scale: replace(scale, epochs=scale.epochs / 2) if scale.name == "cpu" else scale,
)

if __name__ == "__main__":
    main(CLAIM)
