"""Fuzzed picture files: python benchmarks/fuzz.py [--files 10000] [--seed 0] [--json FILE].

Decodes mutated files of ten formats in a process of its own and prints, per format, how many gave pixels, how many a BadPicture
and how many anything else, with the slowest file; then the peak memory of the process and the time of all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "tests" / "data" / "fuzzing.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    start = time.perf_counter()
    done = subprocess.run([sys.executable, str(SCRIPT), str(given.files), str(given.seed)], capture_output=True, text=True)
    if done.returncode != 0:
        print(f"the process ended with {done.returncode}\n{done.stderr[-2000:]}", file=sys.stderr)
        return 1
    found = json.loads(done.stdout) | {"seconds": round(time.perf_counter() - start, 1)}
    print(f"{'format':<18}{'files':>8}{'pixels':>8}{'bad':>8}{'other':>8}{'worst ms':>10}")
    for name, row in found["formats"].items():
        files = row["pixels"] + row["bad"] + len(row["other"])
        print(f"{name:<18}{files:>8,}{row['pixels']:>8,}{row['bad']:>8,}{len(row['other']):>8,}{row['worst_ms']:>10.1f}")
    print(f"peak {found['peak_mb']:.0f} MB ({found['before_mb']:.0f} MB before the first file), {found['seconds']} s in all")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(any(row["other"] for row in found["formats"].values()))


if __name__ == "__main__":
    sys.exit(main())
