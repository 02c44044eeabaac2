"""Embeddings as plain files: backbone features and an index that says which row is which picture."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from smallview.data.pack import Pack, write_bad_files
from smallview.data.sources import Source
from smallview.errors import SmallviewError
from smallview.evaluation.channels import ThreeChannels
from smallview.evaluation.features import extract
from smallview.evaluation.subject import evaluation_pack, open_subject
from smallview.networks.encoders import EncoderConfig
from smallview.records import Pictures

ABOUT, INDEX, BAD_FILES = "embeddings.json", "index.jsonl", "bad_files.jsonl"
VERSION = 1  # of embeddings.json


def embed_pack(
    what: str | Path | nn.Module,
    data: Any,
    *,
    normalize: bool = False,
    size: int | None = None,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[npt.NDArray[np.float32], Pack]:
    """Backbone features float32 [N, F] of every picture, in the source's order, and the pack that says which is which.

    what: a run folder, an encoder folder, a timm name or a module. normalize: cut each row to unit length. Pictures that cannot
    be decoded are left out and listed in the pack's `bad`.

    Raises:
        DataError: data that cannot be used. UsageError: nothing that can embed.
    """
    subject = open_subject(what, size=size)
    _, pack = evaluation_pack(data, subject.config, threads=threads)
    features = extract(subject.encoder, subject.config, shown(pack, subject.config), threads=threads, progress=progress)
    if normalize:
        features = torch.nn.functional.normalize(features, dim=1)
    return features.numpy(), pack


def shown(pack: Pack, config: EncoderConfig) -> Pictures:
    """The pictures as an encoder sees them: gray ones with three equal channels, where it takes three."""
    return pack if pack.channels == config.in_channels else ThreeChannels(pack)


def write_embeddings(features: npt.NDArray[np.float32], pack: Pack, out: str | Path) -> list[Path]:
    """Write embeddings.npy and index.jsonl (one line per row: row, name, label where known), and bad_files.jsonl where some are.

    Each file is written whole or not at all.

    Raises:
        SmallviewError: a folder that cannot be written.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / ".embeddings.npy.part"
        with partial.open("wb") as file:
            np.save(file, features, allow_pickle=False)
        partial.replace(folder / "embeddings.npy")
        write_index(pack, folder / f".{INDEX}.part")
        (folder / f".{INDEX}.part").replace(folder / INDEX)
        written = [folder / "embeddings.npy", folder / INDEX]
        if pack.bad:
            write_bad_files(pack, folder / BAD_FILES)
            written.append(folder / BAD_FILES)
    except (OSError, ValueError) as error:
        raise SmallviewError(
            f"cannot write to {folder}: {getattr(error, 'strerror', None) or error}; choose another --out"
        ) from error
    return written


def write_index(pack: Pack, path: Path) -> str:
    """Write one line for each row, however many there are; -> the SHA-256 of the file. OSError as from writing."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for line in _index_lines(pack):
            file.write(line)
            digest.update(line)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _index_lines(pack: Pack) -> Iterator[bytes]:
    for row, name in enumerate(pack.names):
        record: dict[str, Any] = {
            "row": row,
            "name": plain_name(name),
        }
        if pack.labels is not None:
            label = int(pack.labels[row])
            record["label"] = pack.classes[label] if pack.classes else label
        yield (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def plain_name(name: str) -> str:
    r"""A picture's name as the index has it, in Unicode whatever the bytes of its file.

    Example:
        >>> plain_name("a\udcff.png")
        'a\\xff.png'
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def source_from(source: Source | None, folder: Path) -> dict[str, str] | None:
    """Where pictures lie, as a path from this folder (both may move together), and their fingerprint; None where that is unknown."""
    if source is None or source.root is None or source.fingerprint is None:
        return None
    root = os.path.realpath(source.root)
    try:
        path = os.path.relpath(root, os.path.realpath(folder))
    except ValueError:  # on another drive
        path = root
    return {"path": plain_name(path), "fingerprint": source.fingerprint}
