"""Two views of 224 px, with blur, from decoded photos in memory: images per second of one core.

python benchmarks/views_large.py --json large.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pipelines
from arms import Arm, copy_floor, parse, report
from photos import photos

from smallview.data.packing import open_pack
from smallview.data.sources import open_source

SIZE = 224


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print."""
    given = parse(__doc__, argv, pictures=250, batch=64)
    pictures, what = photos(given.pictures)
    batch = given.batch_size
    pack = open_pack(open_source(pictures), short_side=None)
    makers: dict[str, Callable[[], Arm]] = {
        "ours": lambda: pipelines.ours(pack, SIZE, batch, blur=True),
        "torchvision": lambda: pipelines.torchvision_pil(pictures, SIZE, batch, blur=True, goal=(6, 30)),
        "albumentations": lambda: pipelines.albumentations(pictures, SIZE, batch, blur=True, goal=(1.2, 6)),
        "floor": lambda: copy_floor(SIZE, batch),
    }
    return report("two views of 224 px from memory, blur p = .5", what, makers, given)


if __name__ == "__main__":
    main()
