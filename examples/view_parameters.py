"""Every drawn parameter of every view, as plain arrays: labels for a pretext task, and views to replay.

    python examples/view_parameters.py                  # handwritten digits that come with scikit-learn
    python examples/view_parameters.py --pictures photos/

Prints what was drawn for one picture, cuts its views again from the numbers alone, and changes one number.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace

import numpy as np
from sklearn.datasets import load_digits

from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.records import Batch
from smallview.views.making import ViewMaker
from smallview.views.sampling import ViewParameters
from smallview.views.view import View


def main() -> None:
    """Draw, make, replay, change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", help="a folder, or anything else that pretrain takes")
    parser.add_argument("--size", type=int, default=32)
    given = parser.parse_args()
    digits = np.repeat((load_digits().images * 15.9).astype(np.uint8)[..., None], 3, axis=3)
    pack = open_pack(open_source(given.pictures or digits), short_side=2 * given.size)
    views = (View(), View(scale=(0.1, 0.3), blur=0.0, size=given.size // 2))
    maker = ViewMaker(pack, views, given.size, mean=[0.5] * pack.channels, std=[0.25] * pack.channels, seed=0)

    batch = Batch(np.arange(min(8, len(pack))), epoch=0, step=0)
    parameters = maker.draw(batch)  # one record of arrays [B] per view
    made = maker.make(batch.index, parameters)  # one ViewBatch [B, C, S, S] per view
    for v, drawn in enumerate(parameters):
        print(f"view {v} of picture 0, {drawn.size} px:")
        for name, values in asdict(drawn).items():
            if name != "size":
                print(f"  {name}: {values[0].tolist()}")

    stored = [{name: np.asarray(values).tolist() for name, values in asdict(drawn).items()} for drawn in parameters]
    again = maker.make(batch.index, [ViewParameters(**numbers) for numbers in stored])
    print("replayed to the bit:", all(bool((a.images == b.images).all()) for a, b in zip(made, again, strict=True)))

    mirrored = [replace(drawn, flip=~drawn.flip) for drawn in parameters]
    turned = maker.make(batch.index, mirrored)
    apart = max(float((a.images.flip(3) - b.images).abs().max()) for a, b in zip(made, turned, strict=True))
    print(f"flip alone changed: the mirrored views, within {apart:.0e}")


if __name__ == "__main__":
    main()
