"""Files of weights that others wrote, read without running anything in them: safetensors, and both forms of torch's own.

What a file is, its first bytes say, not its name. A pickle inside is looked through before torch reads it by its allow-list
(`weights_only`): a name that is not known refuses the file, and so does a tensor with more numbers than the file holds.
"""

from __future__ import annotations

import io
import mmap
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallview.errors import DataError
from smallview.networks.pickle_scan import DICTS, RECORDS, Malformed, names_in, scan
from smallview.settings.fitting import printable

DEEPEST = 4
MOST_ENTRIES = 200_000
MOST_PICKLE = 64 * 2**20
MOST_TOLD = 3
_MAGIC = 0x1950A86A20F9469CFC6C  # the first number of torch's older form
_ADVICE = "save its state_dict anew, best as .safetensors"


class _Nothing:
    """Stands in for a setting that was kept beside weights: takes anything, holds nothing."""

    def __new__(cls, *arguments: object) -> _Nothing:
        return object.__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Dict:
    """Stands in for a kind of dict: a plain one."""

    def __new__(cls, *arguments: object) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Every tensor in a file of weights by its full name, on the CPU; of torch's own forms their numbers are mapped, not copied, where
    that can be.

    Raises:
        DataError: no such file, damaged, or holding code; which, it says.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "peer.ckpt"
        >>> torch.save({"epoch": 3, "state_dict": {"module.conv1.weight": torch.ones(2)}}, file)
        >>> read_weights(file)
        {'state_dict.module.conv1.weight': tensor([1., 1.])}
    """
    place = Path(path)
    if not place.is_file():
        raise DataError(f"there is no file of weights at {place}; wanted .safetensors, or a .pt, .pth or .ckpt of torch")
    try:
        tensors = dict(_tensors(_read(place)))
    except _Refused as refused:
        raise DataError(f"{place} is refused: {refused}") from None
    except Malformed as why:
        raise DataError(
            f"{place} is damaged, or no file of weights: {why}; wanted .safetensors or a state_dict of torch"
        ) from None
    except Exception as error:  # a damaged file makes a reader raise nearly anything
        first = printable((str(error).splitlines() or [""])[0][:160])
        told = f"{type(error).__name__}{': ' * bool(first)}{first}"
        raise DataError(
            f"{place} is damaged, or no file of weights ({told}); wanted .safetensors or a state_dict of torch"
        ) from None
    if not tensors:
        raise DataError(f"{place} holds no tensors; wanted a state_dict of torch, or a checkpoint that holds one")
    return tensors


class _Refused(Exception):
    """What a file holds that is not read, and what to do, in a sentence."""


def _read(place: Path) -> Any:
    with place.open("rb") as file:
        start = file.read(512)
    size = place.stat().st_size
    if start[:4] == b"PK\x03\x04":
        _check_zip(place, size)
        return _load(place, mapped=True)
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        from safetensors.torch import load_file

        return load_file(place)
    if start[257:262] == b"ustar":
        raise _Refused(
            f"it is in torch's oldest form, a tar file, which cannot be read without running code{_of_tar(place)}; {_ADVICE}"
        )
    if not start:
        raise Malformed("it is empty")
    _check_old(place, size)
    return _load(place, mapped=False)


def _load(place: Path, mapped: bool) -> Any:
    allowed = [*((_Nothing, name) for name in RECORDS), *((_Dict, name) for name in DICTS)]
    # names are imported by no one: those of settings are given a stand-in here, all others were refused
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.simplefilter("ignore")  # of old storages and of protocols, which are torch's affair
        if mapped and place.suffix != ".safetensors":  # which torch would take at its name
            return torch.load(str(place), map_location="cpu", weights_only=True, mmap=True)
        with place.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def _refuse(strange: set[str], protocol: int) -> None:
    """Refuse what asks for names that are not known, and what torch does not read without running it."""
    if not strange and protocol > 2:
        raise _Refused(f"it is written by pickle's protocol {protocol}, and torch reads no later one than 2 safely; {_ADVICE}")
    if not strange:
        return
    told = printable(", ".join(sorted(strange)[:MOST_TOLD])) + ", ..." * (len(strange) > MOST_TOLD)
    raise _Refused(
        f"it holds code ({told[:200]}), which is never run; where you trust it, load it with what wrote it and {_ADVICE}"
    )


def _check_zip(place: Path, size: int) -> None:
    """Look through torch's zip form: what it names, and that no part claims more than the file has."""
    with zipfile.ZipFile(place) as archive:
        parts = archive.infolist()
        by_name = {part.filename: part for part in parts}
        if len(by_name) < len(parts):
            raise Malformed("it has two parts of one name")
        if sum(part.file_size for part in parts) > size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise Malformed("it is compressed, or claims more than it has; torch.save writes its parts as they are")
        pickles = [part for part in parts if part.filename.endswith(".pkl")]
        strange, protocol = set[str](), 0
        for part in pickles:
            root = part.filename.removesuffix(part.filename.rsplit("/", 1)[-1])
            if part.file_size > MOST_PICKLE:
                raise Malformed(f"its table takes {part.file_size:,} bytes, as with arrays that are no tensors")

            def room(key: str, root: str = root) -> int:
                there = by_name.get(f"{root}data/{key}")
                return -1 if there is None else there.file_size

            found = scan(archive.read(part), room)
            strange, protocol = strange | found.strange, max(protocol, found.protocol)
        _refuse(strange, protocol)
        if not any(part.filename.endswith("data.pkl") for part in pickles):
            raise Malformed("it is a zip file, not of torch")
        if any(part.filename.endswith("constants.pkl") for part in pickles):
            raise _Refused(f"it is a program of TorchScript; {_ADVICE}")


def _check_old(place: Path, size: int) -> None:
    """Look through torch's older form: a magic number, a version, the machine, the object and the keys, a pickle each, then numbers."""
    with place.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        found = scan(whole, lambda key: -1)
        _refuse(found.strange, 0)
        # the number's own bytes: \x8a, its length, itself
        if _MAGIC.to_bytes(10, "little") not in whole[: min(whole.tell(), 64)]:
            raise Malformed("it does not begin as one")
        seen: dict[str, int] = {}
        for _ in range(4):
            found = scan(whole, lambda key: size)
            _refuse(found.strange, found.protocol)
            seen |= {one.key: one.bytes for one in found.stored}
        if sum(seen.values()) > size - whole.tell():
            raise Malformed(f"it claims {sum(seen.values()):,} bytes of numbers and has {size - whole.tell():,}")


def _of_tar(place: Path) -> str:
    """The names that the pickles in a tar file ask for."""
    names: list[str] = []
    try:
        with tarfile.open(place, "r:") as archive:
            for member in archive:
                part = archive.extractfile(member) if member.isreg() and member.size <= MOST_PICKLE else None
                if part is not None:
                    names += names_in(io.BytesIO(part.read()))
    except (tarfile.TarError, OSError, ValueError):
        pass
    return f" ({printable(', '.join(dict.fromkeys(names[:MOST_TOLD])))[:200]})" if names else ""


def _tensors(found: Any) -> Iterator[tuple[str, Tensor]]:
    """(full name, tensor) in the file's order, to a depth; one mapping may be named many times, so that all are counted."""
    left = MOST_ENTRIES
    waiting: list[tuple[str, Any, int]] = [("", found, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout == torch.strided and not value.is_complex():
                yield name, value.detach()
        elif isinstance(value, Mapping) and depth < DEEPEST:
            left -= len(value)
            if left < 0:
                raise Malformed(f"it has more than {MOST_ENTRIES:,} entries")
            waiting += [(f"{name}.{key}" if name else str(key), item, depth + 1) for key, item in reversed(list(value.items()))]
