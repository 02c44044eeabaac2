"""Does an encoder that saw masked backgrounds rely on them less?

    SMALLVIEW_DATA=... python experiments/claims/masked_background.py --out runs/claims     # 10 runs
    python experiments/claims/masked_background.py --scale miniature

Gray clothes pasted on photographs of flowers that go with the class in 19 of 20 training pictures. `same` are test pictures with backgrounds as in
training, `shuffled` the same clothes before any: who goes by the background loses there. Masks are known here, or estimated by the border's colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from grid import Arm, Claim, Pictures, Scale, main
from grid import pictures as plain

import smallview
from smallview.data.decoding import decode
from smallview.evaluation.background import background_shift


def arms(scale: Scale) -> Sequence[Arm]:
    """Probability of masking, by the masks' source."""
    out = [Arm("no masks")]
    for masks in ("border_colour", "known"):
        for p in (0.1, 0.3):
            name = f"{'estimated' if masks != 'known' else 'known'}, p = {p}"
            out.append(Arm(name, "simclr", {"masks": masks}, {f"method.views.{v}.mask_background": p for v in (0, 1)}))
    return out


def shifted(name: str, scale: Scale) -> Pictures:
    """The set with its backgrounds; `test` is a dict of both parts, `masks` are known."""
    made = plain(name, scale)
    (x, y), (test_x, test_y) = made.train, made.test
    if scale.name == "miniature":
        random = np.random.default_rng(0)
        photographs = [random.integers(0, 255, (40, 40, 3), dtype=np.uint8) for _ in range(12)]
        x, test_x, size = np.where(x[..., 0] > 90, x[..., 0], 0), np.where(test_x[..., 0] > 90, test_x[..., 0], 0), 16
    else:
        flowers = sorted(Path(plain("flowers", scale).unlabeled).rglob("*.jpg"))[:200]
        photographs, size = [decode(path.read_bytes()) for path in flowers], scale.size
    parts = background_shift((x, y), (test_x, test_y), photographs, size=size)
    pad = (size - x.shape[1]) // 2
    masks = np.pad(x > 0, ((0, 0), (pad, size - x.shape[1] - pad), (pad, size - x.shape[2] - pad)))
    tests: Any = {"same": parts.same, "shuffled": parts.shuffled}
    return Pictures(name, parts.train[0], parts.train, tests, masks)


def both_backgrounds(run: Path, data: Pictures, scale: Scale) -> dict[str, float]:
    """The linear probe with backgrounds as in training and with any, and what is lost between."""
    out: dict[str, float] = {}
    for part, test in data.test.items():
        rows = smallview.evaluate(run, data.train, test, "linear", leaks=False, threads=scale.threads)
        row = next(row for row in rows if row.metric.startswith("linear"))
        out |= {part: row.value, f"{part} untrained": row.floor_untrained, f"{part} pixels": row.floor_pixels}
    return {**out, "lost": out["same"] - out["shuffled"]}


CLAIM = Claim(
    "masked_background",
    "Masked backgrounds",
    "Training on pictures whose background is masked now and then makes representations that rely on it less (Tomasev et al., 2022).",
    arms,
    against="no masks",
    telling=("estimated, p = 0.3", "known, p = 0.3"),
    found="They do, in both seeds: on shuffled backgrounds +2.7 and +3.2 points with known masks and p = 0.3, +1.5 and +2.1 with masks "
    "estimated from the picture itself, and 4.7 and 5.4 points are lost instead of 7.5. Where backgrounds are as in training nothing "
    "that two seeds show is paid for it (+0.2 and -0.3).",
    columns={"shuffled, linear %": "shuffled", "same, linear %": "same", "lost, points": "lost"},
    judge=both_backgrounds,
    data=("fashion_mnist",),
    pictures=shifted,
    settings=lambda scale: replace(scale, resolution=None, epochs=8.0) if scale.name == "cpu" else scale,
)

if __name__ == "__main__":
    main(CLAIM)
