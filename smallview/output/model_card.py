"""The README.md of an exported encoder: what it is, what it was trained on and judged by, and code that loads it.

It names no user and no folder of the machine that it was written on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from smallview.evaluation.metrics import told_once
from smallview.networks.dense_small import DenseSmall
from smallview.networks.patches import OnPatches
from smallview.output.parity import Parity
from smallview.output.standalone import MODES
from smallview.output.targets import Handed
from smallview.output.traced import INPUTS, ONNX, PROGRAM, resizing
from smallview.records import Row
from smallview.views.view import centre_side

HOMES = ("home", "Users")


@dataclass(frozen=True)
class Past:
    """Where an encoder comes from, as far as it is known.

    settings: those that differ from the method's preset, one line each. centre: how much of its pictures'
    short side a centre view covers.
    """

    data: str | None = None
    pictures: int | None = None
    method: str | None = None
    length: str | None = None
    settings: Sequence[str] = ()
    rows: Sequence[Row] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)
    machine: str | None = None
    centre: float | None = None


def name_of_data(data: str) -> str:
    """What data may be called elsewhere: the last part of a path, and not that where it is the name of a user.

    Example:
        >>> name_of_data("/data/photos/"), name_of_data("hf:beans"), name_of_data("/home/ann")
        ('photos', 'hf:beans', 'a home folder')
    """
    path = PurePath(data.replace("\\", "/"))
    return "a home folder" if path.parent.name in HOMES else path.name or "pictures"


def model_card(to: str, handed: Handed, past: Past, parity: Parity) -> str:
    """The card as Markdown; the first block of Python in it loads the encoder when it is run in the card's folder."""
    config = handed.config
    parts = [
        _front(to, handed),
        f"# {_title(handed)}: {config.features} features of pictures of {config.size} px",
        f"A compact image encoder, trained without labels{_method(past)}. {_encoder(handed)}",
        "## Loading it",
        f"In this folder, with a picture beside it:\n\n```python\n{snippet(to, handed)}```",
        *([f"As the backbone of a detector:\n\n```python\n{_detector(config.architecture)}```"] if to == "torchvision" else []),
        "## Pictures",
        _pictures(to, handed),
        "## Training",
        _training(past),
        "## Judged",
        _judged(past.rows),
        "## Equal to the encoder that was trained",
        f"Checked when this folder was written: {parity.sentence()}.",
        "## Licence",
        "The weights are yours: the library that trained them claims no right in them.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(to: str, handed: Handed) -> str:
    library = "" if isinstance(handed.net, (DenseSmall, OnPatches)) or to not in ("timm", "hub") else "library_name: timm\n"
    return f"---\npipeline_tag: image-feature-extraction\n{library}tags:\n- self-supervised-learning\n---"


def _title(handed: Handed) -> str:
    return handed.config.architecture.removeprefix("custom:")


def _method(past: Past) -> str:
    return "" if past.method is None else f" by {past.method}"


def _encoder(handed: Handed) -> str:
    config = handed.config
    count = sum(p.numel() for p in handed.net.parameters())
    depth = "" if config.depth is None else f", without its last stages (depth {config.depth})"
    stem = "" if isinstance(handed.net, OnPatches) else f"; {config.stem} stem"
    return f"{count:,} parameters{stem}{depth}."


def _pictures(to: str, handed: Handed) -> str:
    config = handed.config
    lines = [
        f"- prepared as {resizing(handed.crop, config.size)}",
        f"- {config.in_channels} channel{'s' * (config.in_channels != 1)} in [0, 1], normalised: minus {list(config.mean)}, "
        f"divided by {list(config.std)}",
    ]
    if to in ("onnx", "torch-export"):
        lines.append(f"- the program takes {INPUTS[handed.input]}")
    if handed.crop != 1.0:
        lines.append(
            "- in two steps, as when it was trained and judged; in one step, as most libraries do it, pictures come out sharper and "
            "features a little different"
        )
    return "\n".join(lines)


def _training(past: Past) -> str:
    lines = []
    if past.data is not None:
        lines.append(f"- data: {past.data}" + ("" if past.pictures is None else f", {past.pictures:,} pictures"))
    if past.method is not None:
        lines.append(f"- method: {past.method}" + ("" if past.length is None else f", {past.length}"))
        told = "; ".join(f"`{line}`" for line in past.settings)
        lines.append(f"- settings that differ from the method's preset: {told or 'none'}")
    cost = past.cost
    if "train_seconds" in cost:
        steps = f", {cost['steps']:,} steps" if "steps" in cost else ""
        machine = "" if past.machine is None else f", on {past.machine}"
        lines.append(f"- cost: {cost['train_seconds']:,} s{steps}{machine}")
    if "forward_mmacs" in cost:
        lines.append(f"- a picture costs {cost['forward_mmacs']:,} million multiplications")
    return "\n".join(lines) or "Not recorded beside the encoder."


def _judged(rows: Sequence[Row]) -> str:
    if not rows:
        return "Not judged yet."
    lines = ["| judged on | metric | raw pixels | untrained encoder | this encoder |", "|---|---|---:|---:|---:|"]
    for row in rows:
        floors = ["-" if value is None else f"{value:.2f}" for value in (row.floor_pixels, row.floor_untrained)]
        spread = "" if row.interval is None else f" ± {row.interval:.2f}"
        test = name_of_data(str(row.settings.get("test", "")))
        lines.append(f"| {test} | {row.metric} | {floors[0]} | {floors[1]} | {row.value:.2f}{spread} |")
    known = dict.fromkeys((row.metric, row.protocol) for row in rows)
    each, common = told_once([protocol for _, protocol in known])
    protocols = [f"- {metric}: {text}" for (metric, _), text in zip(known, each, strict=True)]
    protocols += [f"- all of them: {common}"] if common else []
    return "\n".join([*lines, "", "± is half the 95 % interval over test pictures or draws, of one training.", "", *protocols])


def snippet(to: str, handed: Handed) -> str:
    """Python that loads the encoder from the folder that it is run in, and gives the features of picture.jpg."""
    if to == "onnx":
        return _prepared(handed, "import onnxruntime") + (
            f'\nsession = onnxruntime.InferenceSession("{ONNX}")\n(features,) = session.run(["features"], {{"images": images}})'
            f"  # {_shape(handed)}\n"
        )
    if to == "torch-export":
        return _prepared(handed, "import torch") + (
            f'\nprogram = torch.export.load("{PROGRAM}").module()\nwith torch.no_grad():\n'
            f"    features = program(torch.from_numpy(images))  # {_shape(handed)}\n"
        )
    if to == "torchvision":
        name = handed.config.architecture.split(".")[0]
        return _prepared(handed, "import torch", "import torchvision", "from safetensors.torch import load_file") + (
            f"\nnet = torchvision.models.{name}(weights=None)\nnet.fc = torch.nn.Identity()\n"
            'net.load_state_dict(load_file("model.safetensors"), strict=True)\nwith torch.no_grad():\n'
            f"    features = net.eval()(torch.from_numpy(images))  # {_shape(handed)}\n"
        )
    if isinstance(handed.net, (DenseSmall, OnPatches)):
        config = handed.config
        lines = ["import torch", "from load import load, prepare", "from PIL import Image", "", "net = load()"]
        images = 'prepare(Image.open("picture.jpg"))'
        if config.in_channels not in MODES:
            lines = [line for line in lines if "PIL" not in line]
            images = f"torch.zeros(1, {config.in_channels}, {config.size}, {config.size})"
        return "\n".join([*lines, "with torch.no_grad():", f"    features = net({images})  # {_shape(handed)}"]) + "\n"
    return _prepared(handed, "import timm", "import torch") + (
        '\nnet = timm.create_model("local-dir:.", pretrained=True).eval()\nwith torch.no_grad():\n'
        f"    features = net(torch.from_numpy(images))  # {_shape(handed)}\n"
    )


def _shape(handed: Handed) -> str:
    return f"[1, {handed.config.features}]"


def _prepared(handed: Handed, *imports: str) -> str:
    """Python that makes `images` of picture.jpg, in the form that the program or the network takes."""
    config, size, channels = handed.config, handed.config.size, handed.config.in_channels
    lines = ["import numpy as np", *imports]
    if channels in MODES:
        bleed = "" if handed.crop == 1.0 else f", bleed={(1.0 - handed.crop) / 2.0:g}"
        side = centre_side(size)
        smaller = [
            f"if min(picture.size) > {side}:  # as it was when the encoder was trained and judged",
            f"    picture = ImageOps.cover(picture, ({side}, {side}), Image.Resampling.BILINEAR)",
        ] * (handed.crop != 1.0)
        lines += [
            "from PIL import Image, ImageOps",
            "",
            f'picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("{MODES[channels]}")',
            *smaller,
            f"picture = ImageOps.fit(picture, ({size}, {size}), Image.Resampling.BILINEAR{bleed})",
            f"pictures = np.array(picture).reshape(1, {size}, {size}, {channels})",
        ]
    else:
        lines += ["", f"pictures = np.zeros((1, {size}, {size}, {channels}), np.uint8)  # yours, resized"]
    if handed.input == "uint8":
        return "\n".join([*lines, "images = pictures"]) + "\n"
    if handed.input == "float":
        return "\n".join([*lines, "images = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32) / 255"]) + "\n"
    lines += [
        f"images = (pictures / 255 - {list(config.mean)}) / {list(config.std)}",
        "images = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)",
    ]
    return "\n".join(lines) + "\n"


def _detector(architecture: str) -> str:
    name = architecture.split(".")[0]
    return (
        "from safetensors.torch import load_file\n"
        "from torchvision.models.detection.backbone_utils import resnet_fpn_backbone\n\n"
        f'backbone = resnet_fpn_backbone(backbone_name="{name}", weights=None)\n'
        'backbone.body.load_state_dict(load_file("model.safetensors"), strict=True)\n'
    )
