"""Embeddings as plain files: backbone features and an index that says which row is which picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from smallview.data.pack import Pack, write_bad_files
from smallview.errors import SmallviewError
from smallview.evaluation.features import extract
from smallview.evaluation.subject import evaluation_pack, open_subject
from smallview.files import write_text


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
    features = extract(subject.encoder, subject.config, pack, threads=threads, progress=progress)
    if normalize:
        features = torch.nn.functional.normalize(features, dim=1)
    return features.numpy(), pack


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
        lines = []
        for row, name in enumerate(pack.names):
            record: dict[str, Any] = {
                "row": row,
                "name": name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
            }
            if pack.labels is not None:
                label = int(pack.labels[row])
                record["label"] = pack.classes[label] if pack.classes else label
            lines.append(json.dumps(record, ensure_ascii=False))
        write_text(folder / "index.jsonl", "\n".join(lines) + "\n")
        written = [folder / "embeddings.npy", folder / "index.jsonl"]
        if pack.bad:
            write_bad_files(pack, folder / "bad_files.jsonl")
            written.append(folder / "bad_files.jsonl")
    except (OSError, ValueError) as error:
        raise SmallviewError(
            f"cannot write to {folder}: {getattr(error, 'strerror', None) or error}; choose another --out"
        ) from error
    return written
