"""Training on a pack four times as large as the memory that the process may use.

    python benchmarks/out_of_core.py                  # 1.25 GiB of memory, 5 GiB of pictures and of disk, in the temporary folder
    python benchmarks/out_of_core.py --kind jpeg --steps 100

A process of its own has no more private memory than --megabytes (RLIMIT_DATA, from its first line on, so that torch and compiled code
are in it), and no more addresses than its libraries take and as much again (RLIMIT_AS), so that it could not map the pack. Inside
these limits it packs noise pictures of 144 px, opens the pack, which checks every byte, and trains by `smallview.pretrain`. Prints one
JSON object: the sizes, and what the process held after every tenth of the steps: RssAnon is what it allocated, RssFile the pages of
files that it maps, VmHWM the most of both. Linux only. The pack is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SIDE, SIZE, BATCH = 144, 64, 32  # a crop of 20 % still has 64 pixels on a side, so that nothing is shrunk
_KEYS = ("VmSize", "VmData", "VmPeak", "VmHWM", "VmRSS", "RssAnon", "RssFile")


def memory() -> dict[str, float]:
    """Of this process, in MiB."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: round(int(words[1]) / 1024, 1) for words in lines if words[0][:-1] in _KEYS}


def noise(i: int, short_side: int | None) -> tuple[npt.NDArray[np.uint8], None]:
    """Picture i, [SIDE, SIDE, 3]: random bytes, with the large shapes that a JPEG keeps."""
    draw = np.random.default_rng(i)
    shapes = np.kron(draw.integers(0, 200, (6, 6, 3), np.uint8), np.ones((SIDE // 6, SIDE // 6, 1), np.uint8))
    return shapes + draw.integers(0, 56, shapes.shape, np.uint8), None


def train(folder: Path, megabytes: int, times: float, steps: int, kind: str) -> dict[str, Any]:
    """What the process held while it packed and trained within its limit."""
    resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 2**20, megabytes * 2**20))
    import torch

    import smallview
    from smallview.data.listing import PathTable
    from smallview.data.sources import Source
    from smallview.run import pretrain

    torch.set_num_threads(1)
    pictures = int(times * megabytes * 2**20) // (SIDE * SIDE * 3)
    source = Source("noise", PathTable.numbered(pictures), 3, noise, fingerprint="0123456789abcdef" * 4)
    before = memory()
    addresses = int((before["VmSize"] + megabytes) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    choice: dict[str, Any] = {"size": SIZE, "batch_size": BATCH, "encoder": "dense_small", "method": "simclr", "threads": 1}
    seen: list[dict[str, float]] = []
    begin, took = time.monotonic(), 0.0
    part_steps = max(1, steps // 10)
    for part in range(10):
        epochs = part_steps * BATCH / pictures
        with contextlib.redirect_stderr(io.StringIO()) as said:
            pretrain(source, out=folder / f"run-{part}", epochs=epochs, sets={"pack": kind}, **choice)
        took = time.monotonic() - begin if part == 0 else took
        seen.append({"steps": (part + 1) * part_steps, **memory()})
    stated = re.search(r"pictures and views take ([\d,]+) MiB", said.getvalue())
    assert stated is not None, said.getvalue()
    stored = sum(path.stat().st_size for path in folder.rglob("data-*.bin"))
    return {
        "smallview": smallview.__version__,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "kind": kind,
        "limit_mib": megabytes,
        "pixels_mib": round(pictures * SIDE * SIDE * 3 / 2**20, 1),
        "stored_mib": round(stored / 2**20, 1),
        "first_tenth_with_packing_s": round(took, 1),
        "stated_before_training_mib": int(stated[1].replace(",", "")),
        "loaded": before,
        "seen": seen,
        "most_rss_anon_mib": max(each["RssAnon"] for each in seen),
        "grown_rss_anon_after_first_tenth_mib": round(seen[-1]["RssAnon"] - seen[0]["RssAnon"], 1),
        "grown_rss_file_after_first_tenth_mib": round(seen[-1]["RssFile"] - seen[0]["RssFile"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1280, help="of private memory, torch and all")
    parser.add_argument("--times", type=float, default=4.0, help="the pixels, as a multiple of that")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--kind", choices=["raw", "jpeg"], default="raw")
    parser.add_argument("--json", type=Path, help="also write the result there")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        print(json.dumps(train(options.inside, options.megabytes, options.times, options.steps, options.kind)))
        return
    with tempfile.TemporaryDirectory(prefix="out-of-core-") as folder:
        environment = {**os.environ, "SMALLVIEW_CACHE": folder}
        result = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--inside", folder], env=environment, stdout=subprocess.PIPE, text=True
        )
    if result.returncode:
        sys.exit(result.returncode)
    told = json.loads(result.stdout.splitlines()[-1])
    if options.json is not None:
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
