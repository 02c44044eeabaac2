"""The part of the pictures that a run trains on, chosen once and listed in its folder; and those that a list leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallview.config import RunConfig
from smallview.data.name_list import few, found_in, list_text, read_list
from smallview.data.sources import Source
from smallview.data.subsets import Subset, positions, taken, typical_and_diverse
from smallview.errors import DataError, UsageError
from smallview.files import write_text
from smallview.output.embed import embed_pack

LIST = "subset.json"
EXCLUDED = "excluded.txt"
Say = Callable[[str], None]


def excluded_names(listed: str, began: Path | None) -> list[str]:
    """The names of a list of pictures to leave out; of a run that began in this folder, from the copy that it keeps.

    Raises:
        UsageError: no such list, or another one than the copy.
    """
    if began is None or not (began / EXCLUDED).is_file():
        return read_list(listed)
    names = read_list(began / EXCLUDED)
    if Path(listed).is_file() and sorted(read_list(listed)) != sorted(names):
        raise UsageError(
            f"--exclude {listed} is another list than the one that the run began with, of which {began / EXCLUDED} is a copy; "
            "put that back, or add --fresh to start anew"
        )
    return names


def without(
    source: Source, names: Sequence[str], listed: str, folder: Path | None, say: Say
) -> tuple[Source, npt.NDArray[np.int64]]:
    """(the source without the pictures of these names, the positions of the others); a copy of the list goes into the folder.

    Raises:
        DataError: none of the names is there, or fewer than two pictures are left.
    """
    gone, absent = found_in(source, names, f"--exclude {listed}")
    kept = np.delete(np.arange(len(source)), gone).astype(np.int64)
    if len(kept) < 2:
        raise DataError(f"--exclude {listed} leaves {len(kept)} of {len(source):,} pictures of {source.name}; wanted 2 or more")
    if absent:
        say(f"{len(absent):,} of {len(names):,} names in {listed} are not in {source.name} ({few(absent)})")
    say(f"left out, as {listed} says: {len(gone):,} of {len(source):,} pictures of {source.name}")
    if folder is not None:
        write_text(folder / EXCLUDED, list_text(names, [f"left out of this run; a copy of {listed}"]))
    return taken(source, kept, source.name) if len(gone) else source, kept


def part_of(
    source: Source, config: RunConfig, seed: int, folder: Path | None, say: Say
) -> tuple[Source, npt.NDArray[np.int64]]:
    """(the pictures that the settings' subset asks for, their positions in all of them).

    The list is written into the folder, where there is one: `subset.json` has position and name of each.

    Raises:
        DataError: more asked for than there is, or no labels where classes are asked for.
    """
    subset = config.subset
    assert subset is not None, "the settings have a subset"
    known = subset.chosen_by is None
    chosen = positions(source, subset, seed) if known else _chosen_by(source, subset, seed, config.threads, folder, say)
    if len(chosen) < 2:
        raise DataError(f"the subset of {source.name} has {len(chosen)} picture; wanted 2 or more")
    say(f"training on {len(chosen):,} of {len(source):,} pictures of {source.name}")
    if folder is not None:
        listed = {
            "pictures": len(source),
            "fingerprint": source.fingerprint,
            "subset": {**asdict(subset), "seed": seed},
            "positions": chosen.tolist(),
            "names": [
                source.names[int(i)].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for i in chosen
            ],
        }
        write_text(folder / LIST, json.dumps(listed) + "\n")
    return taken(source, chosen, f"{source.name}-{len(chosen)}"), chosen


def _chosen_by(source: Source, subset: Subset, seed: int, threads: int, folder: Path | None, say: Say) -> npt.NDArray[np.int64]:
    """What an encoder finds typical and diverse; what a run has chosen stays while its pictures do."""
    assert subset.chosen_by is not None, "the caller has looked"
    if folder is not None and (folder / LIST).exists() and source.fingerprint is not None:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
        # a start that failed may have left a list behind, and the next one ask for other pictures
        asked = {**asdict(subset), "seed": seed}
        if listed["fingerprint"] == source.fingerprint and listed.get("subset", asked) == asked:
            return np.array(listed["positions"], np.int64)
    say(f"{subset.chosen_by} looks at {len(source):,} pictures to choose typical and diverse ones")
    features, pack = embed_pack(subset.chosen_by, source, threads=threads)
    return np.sort(pack.index[typical_and_diverse(features, subset.count(len(source)), seed)]).astype(np.int64)
