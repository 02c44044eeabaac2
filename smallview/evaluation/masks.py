"""Masks with a class for each pixel, for `dense`: from a folder of files named as the pictures, or as arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from smallview.errors import DataError
from smallview.evaluation.bench import Labeled

ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".jpg", ".jpeg")
MOST_NAMED = 3
NEAR = 32  # a mask stored as JPEG is not quite 0 and 255

Mask = npt.NDArray[np.uint8]


def read_masks(given: Sequence[Any], parts: Sequence[Labeled], flags: Sequence[str]) -> list[list[Mask]]:
    """One mask uint8 [H, W] for every picture of every part, in order; what 255 means is decided over all parts.

    given, one for each part: a folder of pictures of masks whose paths are those of the pictures but for the ending, or masks as
    arrays [H, W]. Of masks with 0 and 255 alone, 255 is the foreground; in others 255 is ignored.

    Raises:
        DataError: a picture without a mask, or masks that are none.
    """
    read = [_read(one, part, flag) for one, part, flag in zip(given, parts, flags, strict=True)]
    whole = _foreground([mask for masks in read for mask in masks])
    return [[whole.pop(0) for _ in masks] for masks in read]


def _read(given: Any, part: Labeled, flag: str) -> list[Mask]:
    if isinstance(given, (str, os.PathLike)):
        masks = _from_folder(Path(given), part, flag)
    elif isinstance(given, Sequence) or (isinstance(given, np.ndarray) and given.ndim == 3):
        masks = [_plain(np.asarray(mask), f"{flag} {i}") for i, mask in enumerate(given)]
    else:
        raise DataError(f"{flag} is a {type(given).__name__}; wanted a folder, or a list of masks [H, W]")
    if len(masks) != len(part):
        raise DataError(f"{len(masks):,} masks for {len(part):,} pictures of {part.name}; wanted one each")
    return masks


def _foreground(masks: list[Mask]) -> list[Mask]:
    """255 as class 1 where no other class is there."""
    found = set(np.unique(np.concatenate([np.unique(mask) for mask in masks])).tolist()) if masks else set()
    if not found - {0, 255}:
        return [(mask == 255).astype(np.uint8) for mask in masks]
    if not {value for value in found if NEAR < value < 255 - NEAR} and max(found) > NEAR and len(found) > NEAR:
        return [(mask > 127).astype(np.uint8) for mask in masks]
    return masks


def _plain(mask: npt.NDArray[Any], name: str) -> Mask:
    if (
        mask.ndim == 3
        and mask.shape[2] in (3, 4)
        and bool((mask[..., 0] == mask[..., 1]).all() and (mask[..., 1] == mask[..., 2]).all())
    ):
        mask = mask[..., 0]
    if mask.ndim != 2 or 0 in mask.shape:
        raise DataError(f"{name} is {list(mask.shape)}; wanted a mask [H, W] with a class for each pixel")
    if mask.dtype == np.bool_:
        return mask.astype(np.uint8)
    if mask.dtype.kind not in "iu" or int(mask.min()) < 0 or int(mask.max()) > 255:
        raise DataError(f"{name} is {mask.dtype} from {mask.min()} to {mask.max()}; wanted whole numbers from 0 to 255")
    return mask.astype(np.uint8)


def _from_folder(folder: Path, part: Labeled, flag: str) -> list[Mask]:
    from PIL import Image

    if not folder.is_dir():
        raise DataError(f"{flag}: there is no folder {folder}; wanted one with a mask for each picture")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in ENDINGS and path.is_file():
            files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    by_name = {PurePosixPath(stem).name: path for stem, path in files.items()}
    out: list[Mask] = []
    missing: list[str] = []
    for name in part.names:
        stem = PurePosixPath(str(name)).with_suffix("").as_posix()
        found = files.get(stem) or by_name.get(PurePosixPath(stem).name)
        if found is None:
            missing.append(str(name))
            continue
        try:
            with Image.open(found) as image:
                array = np.asarray(image if image.mode in ("L", "P", "1", "I", "RGB", "RGBA") else image.convert("L"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{flag}: {found} cannot be read ({error}); wanted a picture with a class for each pixel"
            ) from error
        out.append(_plain(array, str(found)))
    if missing:
        more = f" and {len(missing) - MOST_NAMED:,} more" if len(missing) > MOST_NAMED else ""
        raise DataError(
            f"{flag} {folder} has no mask for {', '.join(missing[:MOST_NAMED])}{more}; wanted files with the pictures' names"
        )
    return out
