"""Are many views worth their cost? Two large ones against two or four with small ones beside them, at equal compute and at equal epochs.

    SMALLVIEW_DATA=... python experiments/claims/multi_crop.py --out runs/claims     # 12 runs
    python experiments/claims/multi_crop.py --scale miniature

SimCLR with large views of the whole size and small ones of half of it, which attract the large ones and not each other. Floating-point operations
decide what equal compute is: a small view costs about a quarter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from grid import Arm, Claim, Scale, main

SMALL = 'View(size=0.5, scale=(0.05, 0.3), seen_by="online")'
COST = 0.25


def arms(scale: Scale) -> Sequence[Arm]:
    """Numbers of large and small views."""
    out = []
    for large, small in ((2, 0), (2, 4), (4, 0), (4, 2)):
        views = {"method.views": "(" + ", ".join(["View()"] * large + [SMALL] * small) + ")"}
        share = 2.0 / (large + COST * small)
        if share == 1.0:
            out.append(Arm("2 + 0", "simclr", {}, views))
            continue
        out.append(Arm(f"{large} + {small}, equal compute", "simclr", {"epochs": round(scale.epochs * share, 2)}, views))
        if small:
            out.append(Arm(f"{large} + {small}, equal epochs", "simclr", {}, views))
    return out


CLAIM = Claim(
    "multi_crop",
    "Many views",
    "Several large views and a few small ones make better representations than two (Tomasev et al., 2022).",
    arms,
    against="2 + 0",
    found="At equal compute more views bring nothing here: -0.7 to +0.9 points for two large and four small ones, four large, or four and two. "
    "At equal epochs they do, for what they cost: +1.8 and +2.1 with four small ones at 1.5 times the compute, +4.0 and +3.7 with four and "
    "two at 2.3 times.",
    telling=("2 + 4, equal compute", "4 + 2, equal compute", "4 + 2, equal epochs"),
    settings=lambda scale: replace(scale, resolution=None, epochs=8.0) if scale.name == "cpu" else scale,
)

if __name__ == "__main__":
    main(CLAIM)
