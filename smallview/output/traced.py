"""An encoder as a program that needs no code of anyone: torch.export and ONNX, with a batch of any length.

Legend: B pictures, C channels, S the side of a view, F features.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from smallview.errors import UsageError
from smallview.networks.modes import evaluating
from smallview.output.parity import Features, Shown, normalised
from smallview.views.view import centre_side

ONNX, PROGRAM = "model.onnx", "model.pt2"
ONNX_NEEDS = dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx")
INPUTS = {
    "normalised": "float32 [B, C, S, S], pictures in [0, 1] normalised by mean and std",
    "float": "float32 [B, C, S, S], pictures in [0, 1]",
    "uint8": "uint8 [B, S, S, C], pictures as they are decoded",
}
_OF_SOURCE = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")


class _Prepared(nn.Module):
    """The encoder with what stands before it: images or pictures -> features [B, F]."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, input: str, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.net, self.input = net, input
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.input == "uint8":
            images = images.permute(0, 3, 1, 2).float() / 255.0
        if self.input != "normalised":
            images = (images - self.mean) / self.std
        features: Tensor = self.net(images)
        return features


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no notes of exporters, which speak to their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _traced(net: nn.Module, told: Mapping[str, Any]) -> tuple[Any, Tensor]:
    """The program for a batch of any length, and the pictures that it was traced with; no file names of this machine are in it."""
    size, channels = told["size"], told["in_channels"]
    shown = torch.zeros(2, size, size, channels, dtype=torch.uint8)
    example = shown if told["input"] == "uint8" else shown.permute(0, 3, 1, 2).float().contiguous()
    prepared = net if told["input"] == "normalised" else _Prepared(net, told["input"], told["mean"], told["std"])
    try:
        with evaluating(prepared), torch.no_grad():
            program = torch.export.export(prepared, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as error:  # what code of anyone's cannot be traced makes torch raise nearly anything
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UsageError(f"torch cannot trace {type(net).__name__} as one program for any batch: {first}") from error
    for node in program.graph.nodes:
        for name in _OF_SOURCE:
            node.meta.pop(name, None)
    return program, example


def write_program(net: nn.Module, told: Mapping[str, Any], folder: Path) -> None:
    """Write model.pt2, which torch.export.load opens."""
    with _quiet():
        torch.export.save(_traced(net, told)[0], folder / PROGRAM)


def _as_taken(pictures: Shown, told: Mapping[str, Any]) -> Tensor:
    """Pictures in the form that a program says it takes."""
    if told["input"] == "uint8":
        return torch.from_numpy(np.ascontiguousarray(pictures))
    plain = told["input"] == "float"
    channels = pictures.shape[3]
    return normalised(pictures, [0.0] * channels if plain else told["mean"], [1.0] * channels if plain else told["std"])


def open_program(folder: Path) -> Features:
    """The program in a folder, as torch alone loads it."""
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with _quiet():
        run: Callable[[Tensor], Tensor] = torch.export.load(folder / PROGRAM).module()

    def features(pictures: Shown) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            return run(_as_taken(pictures, told)).numpy()

    return features


def write_onnx(net: nn.Module, told: Mapping[str, Any], folder: Path) -> None:
    """Write model.onnx; its metadata says how pictures are prepared."""
    onnx: Any = import_module("onnx")
    with _quiet():
        program, example = _traced(net, told)
        made: Any = torch.onnx.export(
            program, (example,), dynamo=True, input_names=["images"], output_names=["features"], verbose=False
        )
        model = made.model_proto
    (taken,), (given,) = model.graph.input, model.graph.output
    for value in (taken, given):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    for part in (model.graph, taken, given, *model.graph.node, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.helper.set_model_props(model, {name: _text(value) for name, value in _metadata(told).items()})
    onnx.checker.check_model(model)
    onnx.save(model, folder / ONNX)


def _metadata(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**told, "layout": INPUTS[told["input"]], "resize": resizing(told["crop_pct"], told["size"])}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def resizing(crop: float, size: int) -> str:
    """How a picture becomes a view, in words.

    Example:
        >>> resizing(0.875, 64)
        'made smaller to a short side of 74, then the centre square, 0.875 of it, resized to 64 x 64; bilinear with antialiasing'
    """
    if crop == 1.0:
        return f"the centre square, the whole of the short side, resized to {size} x {size}; bilinear with antialiasing"
    smaller = f"made smaller to a short side of {centre_side(size)}"
    return f"{smaller}, then the centre square, {crop:g} of it, resized to {size} x {size}; bilinear with antialiasing"


def open_onnx(folder: Path) -> Features:
    """The model in a folder, run by onnxruntime and fed as its metadata says."""
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(folder / ONNX), options, providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    told = {"input": said["input"], "mean": json.loads(said["mean"]), "std": json.loads(said["std"])}

    def features(pictures: Shown) -> npt.NDArray[np.float32]:
        (out,) = session.run(["features"], {"images": _as_taken(pictures, told).numpy()})
        return np.asarray(out, np.float32)

    return features
