"""An encoder as the backbone of a detector: people found in photographs, beside the same detector on the untrained encoder.

    SMALLVIEW_DATA=... python experiments/detection.py RUN              # 180 photographs to tune on, 62 to test; some minutes
    python experiments/detection.py --miniature                         # generated squares, an untrained encoder; shows that it runs

Boxes are those around the connected parts of people's masks. Printed: a JSON line for each backbone, with its average precision at an overlap of a
half. Both detectors start from the same other weights and see the same pictures in the same order.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from smallview.evaluation.features import fresh_encoder, recalibrate
from smallview.evaluation.subject import evaluation_pack, open_subject
from smallview.networks.encoders import build_encoder
from smallview.output.detection import average_precision, boxes_of, detect, detection_backbone, detector, fine_tune_detector

Pictures = tuple[list[np.ndarray], list[np.ndarray]]
TRAINED = 180


def people(side: int) -> tuple[Pictures, Pictures]:
    """(pictures, boxes) to tune on and to test on, the short side of every photograph at most `side`."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from shared_pictures import reader

    load = reader()
    pictures, boxes = [], []
    for photo, mask in load.people_masks():
        image, front = (np.asarray(part) for part in load.read_pair(photo, mask))
        scale = min(1.0, side / min(image.shape[:2]))
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        pictures.append(np.asarray(Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BILINEAR)))
        boxes.append(
            boxes_of(np.asarray(Image.fromarray(front).convert("L").resize(size, Image.Resampling.NEAREST)) > 127, 0.01)
        )
    kept = [i for i, found in enumerate(boxes) if len(found)]
    first, last = kept[:TRAINED], kept[TRAINED:]
    return tuple(([pictures[i] for i in part], [boxes[i] for i in part]) for part in (first, last))  # type: ignore[return-value]


def squares(n: int, seed: int) -> Pictures:
    """Bright squares on dark noise."""
    random = np.random.default_rng(seed)
    pictures, boxes = [], []
    for _ in range(n):
        picture = random.integers(0, 60, (64, 64, 3)).astype(np.uint8)
        side, (y, x) = int(random.integers(20, 34)), random.integers(0, 30, 2)
        picture[y : y + side, x : x + side] = (230, 200, 60)
        pictures.append(picture)
        boxes.append(np.array([[x, y, x + side, y + side]], np.float32))
    return pictures, boxes


def main() -> None:
    """Tune both detectors and print what they find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--miniature", action="store_true")
    given = parser.parse_args()
    if given.miniature:
        net, config = build_encoder("dense_small", size=32)
        config = replace(config, mean=(0.5,) * 3, std=(0.25,) * 3)
        train, test, steps, side = squares(8, 0), squares(4, 1), 3, 64
        contestants = {"untrained": net}
    else:
        if given.run is None:
            parser.error("name a run or encoder folder, or --miniature")
        subject = open_subject(given.run)
        config, steps, side = subject.config, given.steps, given.side
        train, test = people(side)
        _, pack = evaluation_pack(np.stack([np.asarray(Image.fromarray(p).resize((side, side))) for p in train[0]]), config)
        contestants = {
            "untrained": recalibrate(fresh_encoder(subject.encoder, config, subject.seed), config, pack),
            subject.name: subject.encoder,
        }
    for name, encoder in contestants.items():
        started = time.monotonic()
        model = detector(detection_backbone(encoder, config, seed=given.seed), config, side=side, seed=given.seed)
        losses = fine_tune_detector(
            model, *train, steps=steps, seed=given.seed, lr=0.01, say=lambda line: print(line, file=sys.stderr, flush=True)
        )
        value = average_precision(detect(model, test[0]), test[1])
        told = {
            "backbone": name,
            "AP50 %": value,
            "loss": round(float(np.mean(losses[-20:])), 3),
            "steps": steps,
            "test": len(test[0]),
        }
        print(json.dumps({**told, "seconds": round(time.monotonic() - started, 1)}), flush=True)


if __name__ == "__main__":
    main()
