"""Search among many embeddings: python benchmarks/search.py [--rows 1000000] [--features 512] [--folder DIR] [--json FILE].

Writes made vectors as `smallview embed` would have written those of so many pictures, beside the encoder that they are said to be of, under a
temporary folder that is removed at the end (2 GB for a million rows of 512). Then, in a process of its own: `vectors_of`, which reads every
byte of them once and checks it, ten searches by one query each, and one by a hundred. Printed: seconds on the clock and of CPU, medians of the
ten, and the most memory that the process had, of which the mapped file is a part.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from smallview.evaluation.features import weights_hash
from smallview.networks.encoders import build_encoder, save_encoder
from smallview.output.embed import ABOUT, INDEX, VERSION
from smallview.output.row_file import digest_of

AT_ONCE = 10_000
SEARCH = """
import json, resource, statistics, sys, time
import numpy as np
import torch
from smallview.embedded import vectors_of
from smallview.searching import nearest

place, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)

def timed(call):
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    return [round(time.perf_counter() - wall, 3), round(time.process_time() - cpu, 3)], found

opened, made = timed(lambda: vectors_of(place + "/encoder", place + "/embeddings", say=lambda line: None, threads=threads))
rows = np.random.default_rng(1).integers(0, len(made), 100)
asked = torch.from_numpy(np.array(made.features[rows]))
asked /= asked.norm(dim=1, keepdim=True)
one = [timed(lambda k=k: nearest(made, asked[k : k + 1], 12)) for k in range(10)]
assert all(int(which[0, 0]) == rows[k] for k, (_, (_, which)) in enumerate(one)), "each vector is its own nearest"
all_of_them, _ = timed(lambda: nearest(made, asked, 12))
unit = 2**20 if sys.platform == "darwin" else 2**10
print(json.dumps({
    "rows": len(made), "features": int(made.features.shape[1]), "threads": threads, "[seconds, CPU seconds] to open": opened,
    "for one query": [statistics.median(each[0][place] for each in one) for place in (0, 1)], "for 100 queries": all_of_them,
    "peak MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit),
}))
"""


def write(place: Path, rows: int, features: int) -> None:
    """An encoder and so many made vectors, as if they were its."""
    net, config = build_encoder(f"dense_small:8-{features}", size=32)
    config = replace(config, mean=(0.5,) * 3, std=(0.25,) * 3)
    save_encoder(net, config, place / "encoder")
    out = place / "embeddings"
    out.mkdir()
    random = np.random.default_rng(0)
    made = np.lib.format.open_memmap(out / "embeddings.npy", "w+", np.float32, (rows, features))
    for start in range(0, rows, AT_ONCE):
        made[start : start + AT_ONCE] = random.standard_normal((min(AT_ONCE, rows - start), features), np.float32)
    made.flush()
    with (out / INDEX).open("w", encoding="utf-8") as index:
        index.writelines(json.dumps({"row": i, "name": f"{i // 1000:04}/{i:07}.jpg"}) + "\n" for i in range(rows))
    about = {
        **{"format_version": VERSION, "encoder": "made", "encoder_sha256": weights_hash(net), "pictures": "made"},
        **{"view": f"one centre view {config.size} px", "mean": list(config.mean), "std": list(config.std), "rows": rows},
        **{"features": features, "sha256": digest_of(out / "embeddings.npy")},
    }
    (out / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Write, search, print; -> what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        write(Path(place), given.rows, given.features)
        command = [sys.executable, "-c", SEARCH, place, str(given.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    for what, value in found.items():
        print(f"{what}: {value}")
    if given.json:
        given.json.write_text(json.dumps(found), encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
