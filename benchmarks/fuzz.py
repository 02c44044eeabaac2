"""Fuzzed files: python benchmarks/fuzz.py [--weights] [--files 10000] [--seed 0] [--json FILE].

Decodes mutated pictures of ten formats, or reads mutated files of weights and files that hold code, in a process of its own. Prints, per
format, how many gave pixels or tensors, how many an error of ours and how many anything else, with the slowest file; then the peak
memory of the process and the time of all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", action="store_true", help="files of weights instead of pictures")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        script = (
            [str(TESTS / "faults" / "weight_fuzzing.py"), folder] if given.weights else [str(TESTS / "data" / "fuzzing.py")]
        )
        done = subprocess.run([sys.executable, *script, str(given.files), str(given.seed)], capture_output=True, text=True)
    if done.returncode != 0:
        print(f"the process ended with {done.returncode}\n{done.stderr[-2000:]}", file=sys.stderr)
        return 1
    found = json.loads(done.stdout) | {"seconds": round(time.perf_counter() - start, 1)}
    whole, broken = ("tensors", "refused") if given.weights else ("pixels", "bad")
    print(f"{'format':<18}{'files':>8}{whole:>8}{broken:>8}{'other':>8}{'worst ms':>10}")
    for row in found["formats"].values():
        row["other"] += row.get("happened", [])  # what nothing may do while it is read
    for name, row in found["formats"].items():
        files = row[whole] + row[broken] + len(row["other"])
        print(f"{name:<18}{files:>8,}{row[whole]:>8,}{row[broken]:>8,}{len(row['other']):>8,}{row['worst_ms']:>10.1f}")
    through = [row for row in found.get("hostile", []) if row["outcome"] != "refused" or row["happened"]]
    if given.weights:
        print(
            f"{len(found['hostile']):,} files with code or false claims, {len(through)} not refused; files left: {found['left']}"
        )
    print(f"peak {found['peak_mb']:.0f} MB ({found['before_mb']:.0f} MB before the first file), {found['seconds']} s in all")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(bool(through or found.get("left")) or any(row["other"] for row in found["formats"].values()))


if __name__ == "__main__":
    sys.exit(main())
