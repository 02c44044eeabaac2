"""How much of the bare forward pass's speed `embed` keeps: from pictures to a file of features, beside the net alone on views that are there.

    python benchmarks/embedding.py --encoder dense_small --size 32 --threads 1
    python benchmarks/embedding.py --encoder mobilenetv3_small_050 --size 112 --pictures 1000 --threads 1

Both arms take turns in one process, with batches of the same size and in the same layout of memory; the first round is warm-up and
not counted. With one thread the clock is the CPU time of the process, with several it is the wall's, which wants an idle machine. To
open encoder and pictures counts for `embed` and not for the bare pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import smallview
from smallview.embedding import BATCH
from smallview.networks.encoders import build_encoder
from smallview.training.precision import cpu_flags, fixed_rule, keep_big_blocks


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print, and give, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="dense_small")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    keep_big_blocks()
    clock = time.process_time if given.threads == 1 else time.perf_counter
    pictures = np.random.default_rng(0).integers(0, 256, (given.pictures, given.size, given.size, 3), dtype=np.uint8)
    net, _ = build_encoder(given.encoder, size=given.size)
    layout = fixed_rule(net, torch.device("cpu"), cpu_flags()).memory_format
    net.eval().to(memory_format=layout)
    views = torch.randn(BATCH, 3, given.size, given.size).to(memory_format=layout)

    def bare() -> None:
        left = given.pictures
        with torch.inference_mode():
            while left > 0:
                net(views[: min(left, BATCH)])
                left -= BATCH

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            smallview.embed(net, pictures, out=Path(folder) / "rows", size=given.size, threads=given.threads, quiet=True)

    times: list[tuple[float, float]] = []
    for n in range(given.rounds + 1):
        took: dict[str, float] = {}
        for arm in (bare, ours) if n % 2 else (ours, bare):
            began = clock()
            arm()
            took[arm.__name__] = clock() - began
        times += [(took["bare"], took["ours"])] * (n > 0)
    shares = [a / b for a, b in times]
    found = {
        **{name: getattr(given, name) for name in ("encoder", "size", "pictures", "threads")},
        "share_of_bare_speed": round(statistics.median(shares), 3),
        "from": round(min(shares), 3),
        "to": round(max(shares), 3),
        "bare_pictures_a_second": round(given.pictures / statistics.median(a for a, _ in times)),
        "clock": "cpu" if given.threads == 1 else "wall",
        "torch": torch.__version__,
    }
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
