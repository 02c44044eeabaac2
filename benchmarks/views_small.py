"""Two views of 32 px, without blur, from pictures in memory: images per second of one core.

    python benchmarks/views_small.py --json small.json

Arms that are not installed are left out with a line; `pip install ".[bench]"` has them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pipelines
from arms import Arm, copy_floor, parse, report
from photos import small_pictures

from smallview.data.packing import open_pack
from smallview.data.sources import open_source

SIZE = 32


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print."""
    given = parse(__doc__, argv, pictures=10_000, batch=512)
    pictures, what = small_pictures(given.pictures)
    batch = given.batch_size
    pack = open_pack(open_source(pictures), short_side=None)
    makers: dict[str, Callable[[], Arm]] = {
        "ours": lambda: pipelines.ours(pack, SIZE, batch, blur=False),
        "torchvision": lambda: pipelines.torchvision_pil(pictures, SIZE, batch, blur=False, goal=(40, 200)),
        "lightly": lambda: pipelines.lightly(pictures, SIZE, batch, goal=(50, 250)),
        "kornia": lambda: pipelines.kornia(pictures, SIZE, batch, goal=(15, 60)),
        "albumentations": lambda: pipelines.albumentations(pictures, SIZE, batch, blur=False, goal=None),
        "draws": lambda: pipelines.draws(pack, SIZE, batch),
        "floor": lambda: copy_floor(SIZE, batch),
    }
    return report("two views of 32 px from memory, no blur", what, makers, given)


if __name__ == "__main__":
    main()
