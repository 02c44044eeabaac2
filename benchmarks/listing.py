"""Listing many files: python benchmarks/listing.py [--files 100000] [--folder DIR] [--json FILE].

Makes so many tiny files in folders of a thousand, and the same pictures and labels in ten tar shards, under a temporary folder
that is removed at the end. Times `open_source` of both, five times each, files warm in the system's cache, and prints the median.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from smallview.data.sources import open_source

GIF = b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\0;"


def make_folder(root: Path, files: int) -> None:
    for k in range(files):
        folder = root / f"{k // 1000:04}"
        if k % 1000 == 0:
            folder.mkdir(parents=True)
        (folder / f"{k:07}.gif").write_bytes(GIF)


def make_shards(root: Path, files: int, shards: int = 10) -> None:
    root.mkdir()
    for s in range(shards):
        with tarfile.open(root / f"shard-{s:03}.tar", "w|") as tar:
            for k in range(s, files, shards):
                for ending, data in ((".gif", GIF), (".cls", b"7")):
                    info = tarfile.TarInfo(f"{k:07}{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def seconds_to_open(path: Path, files: int, repeats: int = 5) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        source = open_source(path)
        times.append(round(time.perf_counter() - start, 3))
        assert len(source) == files, f"{len(source):,} of {files:,} were listed"
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        root = Path(place)
        for name, make in (("files", make_folder), ("pictures and labels in tar shards", make_shards)):
            make(root / name, given.files)
            found[name] = seconds_to_open(root / name, given.files)
            print(f"{given.files:,} {name}: {statistics.median(found[name]):.2f} s ({min(found[name])} to {max(found[name])})")
    if given.json is not None:
        given.json.write_text(json.dumps({"count": given.files, "seconds": found}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
