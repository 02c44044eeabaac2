"""Embeddings that `smallview embed` wrote, read again: whole, of this encoder, and of pictures that are still the same.

Legend: N pictures, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallview.data.arrays import Labels
from smallview.data.changes import Difference
from smallview.data.listing import BadFile, PathTable
from smallview.data.sources import Source, open_source
from smallview.errors import DataError
from smallview.evaluation.features import Judged, weights_hash
from smallview.evaluation.subject import evaluation_pack
from smallview.files import check_version, read_jsonl
from smallview.output import row_file
from smallview.output.embed import ABOUT, BAD_FILES, INDEX, VERSION, plain_name, shown
from smallview.settings.fitting import printable
from smallview.settle import thread_count
from smallview.vectors import Vectors, norms_of

Say = Callable[[str], None]


def read_written(subject: Judged, folder: Path, pictures: Any, say: Say, threads: int | None) -> Vectors:
    """Vectors of a folder that `smallview embed` wrote, checked to be of this encoder and, where that can be told, these pictures.

    Raises:
        DataError: they are not, or the folder is not whole.
    """
    again = "run smallview embed again"
    try:
        about = about_of(folder)
    except FileNotFoundError:
        unfinished = (folder / row_file.STATE).exists()
        told = (
            "are not finished; the same smallview embed command goes on"
            if unfinished
            else f"do not say of which encoder; {again}"
        )
        raise DataError(f"the embeddings in {folder} {told}") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{folder / ABOUT} cannot be read ({error}); {again}") from error
    check_version(about, VERSION, str(folder / ABOUT))
    sha256 = weights_hash(subject.encoder)
    if about.get("encoder_sha256") != sha256:
        raise DataError(
            f"the embeddings in {folder} are of another encoder ({printable(str(about.get('encoder')))}, "
            f"{str(about.get('encoder_sha256'))[:12]}) than {subject.name} ({sha256[:12]}); name that one, or {again} with this one"
        )
    try:
        if row_file.digest_of(folder / row_file.NAME) != about["sha256"]:
            raise ValueError("other bytes than were written")
        features = mapped_of(folder)
        names, given = _index(folder / INDEX)
        if features.shape != (about["rows"], about["features"]) or len(names) != len(features) or not len(features):
            raise ValueError(f"{features.shape} numbers and {len(names):,} names")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"the embeddings in {folder} are damaged ({getattr(error, 'strerror', None) or error}); {again}"
        ) from error
    _check_view(subject, about, folder)
    found, bad = _source_of(folder, about, pictures, say), bad_files_of(folder)
    positions = None
    if found is not None:
        positions = _positions(found, names, {plain_name(each.name) for each in bad}, folder)
        _check_unchanged(subject, found, about, folder, say, threads)
    return Vectors(
        *(subject, sha256, features, norms_of(features), names, *given, found, positions, bad),
        name=str(about["pictures"]),
        written=True,
    )


def _index(path: Path) -> tuple[PathTable, tuple[Labels | None, tuple[str, ...] | None]]:
    """Names, and labels with their classes, of an index's lines."""
    names: list[bytes] = []
    given: list[Any] = []
    with path.open("rb") as file:
        for line in file:
            record = json.loads(line)
            names.append(str(record["name"]).encode("utf-8", "surrogateescape"))
            if "label" in record:
                given.append(record["label"])
    if len(given) != len(names):
        return PathTable.of(names), (None, None)
    if all(isinstance(label, int) for label in given):
        return PathTable.of(names), (np.array(given, np.int64), None)
    classes, labels = np.unique(np.array(given, np.str_), return_inverse=True)
    return PathTable.of(names), (labels.reshape(-1).astype(np.int64), tuple(classes.tolist()))


def _check_view(subject: Judged, about: Mapping[str, Any], folder: Path) -> None:
    config = subject.config
    seen = f"one centre view {config.size} px"
    if (
        str(about.get("view")).startswith(seen)
        and about.get("mean") == list(config.mean)
        and about.get("std") == list(config.std)
    ):
        return
    raise DataError(
        f"the embeddings in {folder} are of other views ({printable(str(about.get('view')))}) than this encoder is shown here ({seen}); "
        "name the same size and normalisation"
    )


def _source_of(folder: Path, about: Mapping[str, Any], pictures: Any, say: Say) -> Source | None:
    """The pictures that embeddings are of: those named, or where they were then."""
    if pictures is not None:
        return open_source(pictures)
    try:
        root = (folder.resolve() / about["source"]["path"]).resolve()
        return open_source(root)
    except (KeyError, TypeError):
        return None
    except DataError:
        say(f"the pictures of {folder} are no more in {printable(str(root))}; --pictures names where they are")
        return None


def _positions(source: Source, names: Sequence[str], bad: set[str], folder: Path) -> npt.NDArray[np.int64]:
    """Where in the source each row's picture is: the same names in the same order, but for those that could not be read."""
    there = [plain_name(name) for name in source.names]
    found = [i for i, name in enumerate(there) if name not in bad] if bad else range(len(there))
    if len(found) != len(names) or any(there[i] != name for i, name in zip(found, names, strict=True)):
        vanished, new = set(names) - set(there), set(there) - set(names) - bad
        told = str(Difference(tuple(sorted(vanished)), tuple(sorted(new)), ())) or "the same names in another order"
        raise _changed(folder, told)
    return np.fromiter(found, np.int64, len(found))


def _changed(folder: Path, told: str) -> DataError:
    return DataError(
        f"the pictures changed since the embeddings in {folder} were made: {told}; run smallview embed again, or bring the old ones back"
    )


def _check_unchanged(
    subject: Judged, source: Source, about: Mapping[str, Any], folder: Path, say: Say, threads: int | None
) -> None:
    """By their fingerprint, and where that is another one (a copy of the folder has other times), by what the encoder sees of them."""
    then = about.get("source") or {}
    if source.fingerprint is not None and then.get("fingerprint") == source.fingerprint:
        return
    say("other times or another place than when they were embedded: reading the pictures to see whether they are the same")
    _, pack = evaluation_pack(source, subject.config, threads=thread_count(threads))
    now = getattr(shown(pack, subject.config), "hash", "")
    if now and about.get("pictures_sha256") != now:
        raise _changed(folder, "the same names with other content")


def mapped_of(folder: Path) -> npt.NDArray[np.float32]:
    """The rows float32 [N, F] as a private map of their file; OSError or ValueError where there are none."""
    return np.load(folder / row_file.NAME, mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]


def about_of(folder: Path) -> dict[str, Any]:
    """What the rows are made of; OSError, ValueError or TypeError where that cannot be read."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if not isinstance(about, dict):
        raise TypeError("no object")
    return about


def bad_files_of(folder: Path) -> tuple[BadFile, ...]:
    """The pictures that were left out; SmallviewError where their list is damaged."""
    lines = read_jsonl(folder / BAD_FILES) if (folder / BAD_FILES).exists() else []
    return tuple(BadFile(str(line.get("path")), str(line.get("error"))) for line in lines)
