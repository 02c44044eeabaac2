"""What makes a checkpoint trusted: a manifest with the size and SHA-256 of each file, of the step, and of itself."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from smallview.training.tensor_file import Piece

FORMAT_VERSION = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_MAX_MANIFEST = 1 << 20


class Damaged(Exception):
    """Why a checkpoint cannot be trusted, in a word or two."""


def _canonical(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"


def manifest(step: int, files: Mapping[str, Sequence[Piece]], milestone: bool = False) -> bytes:
    """The manifest of one step's files, given in pieces, in the one form that it may have; a milestone is a checkpoint that stays."""
    try:
        version = importlib.metadata.version("smallview")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    body = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "files": {name: {"sha256": _digest(pieces), "size": sum(map(len, pieces))} for name, pieces in files.items()},
        **({"milestone": True} if milestone else {}),
        "versions": {"smallview": version, "torch": torch.__version__},
    }
    return _canonical(body | {"sha256": hashlib.sha256(_canonical(body)).hexdigest()})


def _digest(pieces: Sequence[Piece]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _read(path: Path, limit: int) -> bytes:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise Damaged("size")
        return file.read()


def _trusted(path: Path, step: int, keep: bool) -> dict[str, bytes]:
    """The bytes of tensors and state, or nothing but their proof, held against the manifest, the manifest against its own hash."""
    raw = _read(path / MANIFEST, _MAX_MANIFEST)
    body = json.loads(raw)
    own = body.pop("sha256")
    if raw != _canonical(body | {"sha256": own}) or own != hashlib.sha256(_canonical(body)).hexdigest():
        raise Damaged("hash")
    if body["step"] != step:
        raise Damaged(f"it is step {body['step']:,} under another name")
    if body["format_version"] > FORMAT_VERSION:
        raise Damaged("written by a newer smallview")
    wanted = {name: body["files"][name] for name in (TENSORS, STATE)}
    if not keep:
        for name, said in wanted.items():
            with open(path / name, "rb") as file:  # piece by piece: a second copy of everything costs more than its hash
                if os.fstat(file.fileno()).st_size != said["size"]:
                    raise Damaged("size")
                if hashlib.file_digest(file, "sha256").hexdigest() != said["sha256"]:
                    raise Damaged("hash")
        return {}
    files = {}
    for name, said in wanted.items():
        data = _read(path / name, said["size"])
        if len(data) != said["size"]:
            raise Damaged("size")
        if hashlib.sha256(data).hexdigest() != said["sha256"]:
            raise Damaged("hash")
        files[name] = data
    return files


def problem(path: Path, step: int) -> str | None:
    """What is wrong with the checkpoint folder of a step, None where every byte is as written."""
    try:
        _all_trusted(path, step, keep=False)
    except Damaged as damage:
        return str(damage)
    return None


def is_milestone(path: Path) -> bool:
    """Whether the checkpoint in this folder says that it stays; false where that cannot be read."""
    try:
        return json.loads(_read(path / MANIFEST, _MAX_MANIFEST)).get("milestone") is True
    except (Damaged, OSError, ValueError, AttributeError):
        return False


def load(path: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the state in the checkpoint folder of a step; Damaged where anything is not as written."""
    files = _all_trusted(path, step, keep=True)
    try:
        return safetensors.torch.load(files[TENSORS]), json.loads(files[STATE])
    except Exception as error:  # a damaged file may make a reader fail in any way
        raise Damaged(f"unreadable: {type(error).__name__}") from None


def _all_trusted(path: Path, step: int, keep: bool) -> dict[str, bytes]:
    """`_trusted`, with every way to fail as Damaged."""
    try:
        return _trusted(path, step, keep)
    except Damaged:
        raise
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename or '').name} is missing") from None
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror or type(error).__name__}") from None
    except Exception as error:  # a damaged file may make a reader fail in any way
        raise Damaged(f"unreadable: {type(error).__name__}") from None
