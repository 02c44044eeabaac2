"""Where an encoder can go: for each target what it holds, what is written, and how someone without this library opens it.

Legend: C channels, S the side of a view, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from smallview.errors import UsageError, suggest
from smallview.files import write_bytes, write_text
from smallview.networks.dense_small import DenseSmall
from smallview.networks.encoders import EncoderConfig, vit_options
from smallview.networks.patches import OnPatches
from smallview.output import standalone, traced
from smallview.output.parity import Features, features_of

WEIGHTS, CONFIG, CARD, LOADER = "model.safetensors", "config.json", "README.md", "load.py"
FORMAT_VERSION = 1
RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)


@dataclass(frozen=True)
class Handed:
    """An encoder on its way out.

    crop: how much of a picture's short side its centre view covers. input: what a traced program takes: `normalised` images
    [B, C, S, S], `float` ones in [0, 1], or `uint8` pictures [B, S, S, C].
    """

    net: nn.Module
    config: EncoderConfig
    crop: float
    input: str = "normalised"

    def described(self) -> dict[str, Any]:
        """How it is fed, and what it gives."""
        config = self.config
        return {
            "architecture": config.architecture,
            "stem": config.stem,
            **({} if config.depth is None else {"depth": config.depth}),
            "num_features": config.features,
            "in_channels": config.in_channels,
            "size": config.size,
            "mean": list(config.mean),
            "std": list(config.std),
            "interpolation": "bilinear",
            "crop_pct": self.crop,
        }


@dataclass(frozen=True)
class Target:
    """One form of an encoder: refusal says why it cannot hold this one (None: it can), write fills a folder, open reads it.

    open must use nothing of this library's networks and no value but those in the folder. needs: {package: where from}.
    """

    refusal: Callable[[Handed], str | None]
    write: Callable[[Handed, Path], None]
    open: Callable[[Path], Features]
    needs: Mapping[str, str]
    traced: bool = False


def _plain_timm(handed: Handed) -> str | None:
    config = handed.config
    if config.architecture.startswith("custom:"):
        return f"{config.architecture[7:]}, a module of your own"
    if isinstance(handed.net, (DenseSmall, OnPatches)):
        return f"{config.architecture}, this project's own encoder"
    if config.depth is not None:
        return f"{config.architecture} without its last stages (depth {config.depth})"
    if config.stem == "small" and vit_options(config.architecture, config.size, config.stem) is None:
        return f"{config.architecture} with the small-picture stem"
    return None


def _write_weights(handed: Handed, folder: Path) -> None:
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in handed.net.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))


def _write_config(folder: Path, to: str, told: Mapping[str, Any]) -> None:
    marked = {**told, "smallview": {"export": to, "format_version": FORMAT_VERSION}}
    write_text(folder / CONFIG, json.dumps(marked, indent=2) + "\n")


def _read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config


def _write_timm(handed: Handed, folder: Path, to: str = "timm") -> None:
    config = handed.config
    fitted = vit_options(config.architecture, config.made_for or config.size, config.stem)
    arguments = {} if fitted is None else fitted[0]
    if config.in_channels != 3:
        arguments = {**arguments, "in_chans": config.in_channels}
    known: Mapping[str, Any] = getattr(handed.net, "pretrained_cfg", None) or {}
    told = {
        "architecture": config.architecture.split(".")[0],
        "num_classes": 0,
        # timm counts the features of its last map, before a last convolution
        "num_features": int(getattr(handed.net, "num_features", config.features)),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            "input_size": [config.in_channels, config.size, config.size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": handed.crop,
            "crop_mode": "center",
            "mean": list(config.mean),
            "std": list(config.std),
            "num_classes": 0,
            **{name: known[name] for name in ("first_conv", "classifier") if known.get(name) is not None},
        },
    }
    _write_weights(handed, folder)
    _write_config(folder, to, told)


def _open_timm(folder: Path) -> Features:
    import timm

    net: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return features_of(net.eval(), net.pretrained_cfg["mean"], net.pretrained_cfg["std"])


def _plain_torchvision(handed: Handed) -> str | None:
    config = handed.config
    if (reason := _plain_timm(handed)) is not None:
        return reason
    if config.architecture.split(".")[0] not in RESNETS:
        return f"{config.architecture}, which torchvision does not have with these names of its layers (it has ResNets)"
    return (
        None if config.in_channels == 3 else f"{config.architecture} for {config.in_channels} channels (torchvision's have 3)"
    )


def _write_torchvision(handed: Handed, folder: Path) -> None:
    _write_weights(handed, folder)
    _write_config(folder, "torchvision", handed.described())


def _open_torchvision(folder: Path) -> Features:
    import torchvision
    from safetensors.torch import load_file

    config = _read_config(folder)
    net = getattr(torchvision.models, config["architecture"].split(".")[0])(weights=None)
    net.fc = nn.Identity()
    net.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    return features_of(net.eval(), config["mean"], config["std"])


def _plain_hub(handed: Handed) -> str | None:
    return None if isinstance(handed.net, (DenseSmall, OnPatches)) else _plain_timm(handed)


def _write_hub(handed: Handed, folder: Path) -> None:
    if not isinstance(handed.net, (DenseSmall, OnPatches)):
        _write_timm(handed, folder, "hub")
        return
    layers = [layer for layer in handed.net.body if isinstance(layer, nn.Conv2d)]
    shape: dict[str, Any] = {"widths": [conv.out_channels for conv in layers], "strides": [conv.stride[0] for conv in layers]}
    if isinstance(handed.net, OnPatches):
        shape |= handed.net.dictionary_shape()
    _write_weights(handed, folder)
    _write_config(folder, "hub", {**handed.described(), **shape})
    write_text(folder / LOADER, Path(standalone.__file__).read_text(encoding="utf-8"))


def _open_hub(folder: Path) -> Features:
    if not (folder / LOADER).exists():
        return _open_timm(folder)
    space: dict[str, Any] = {"__name__": "load", "__file__": str(folder / LOADER)}
    exec(compile((folder / LOADER).read_text(encoding="utf-8"), str(folder / LOADER), "exec"), space)
    config = _read_config(folder)
    return features_of(space["load"](folder), config["mean"], config["std"])


def _write_traced(to: str, write: Callable[..., None]) -> Callable[[Handed, Path], None]:
    def into(handed: Handed, folder: Path) -> None:
        told = {**handed.described(), "input": handed.input}
        write(handed.net, told, folder)
        _write_config(folder, to, told)

    return into


def _all(handed: Handed) -> None:
    return None


TARGETS: Mapping[str, Target] = {
    "timm": Target(_plain_timm, _write_timm, _open_timm, {}),
    "torchvision": Target(_plain_torchvision, _write_torchvision, _open_torchvision, {}),
    "onnx": Target(_all, _write_traced("onnx", traced.write_onnx), traced.open_onnx, traced.ONNX_NEEDS, traced=True),
    "torch-export": Target(_all, _write_traced("torch-export", traced.write_program), traced.open_program, {}, traced=True),
    "hub": Target(_plain_hub, _write_hub, _open_hub, {}),
}
FILES = {WEIGHTS, CONFIG, CARD, LOADER, traced.ONNX, traced.PROGRAM}


def target_of(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: there is none, or a package that it needs is not installed.

    Example:
        >>> target_of("time")
        Traceback (most recent call last):
        smallview.errors.UsageError: nothing is exported to "time"; did you mean "timm"?
    """
    if name not in TARGETS:
        raise UsageError(f'nothing is exported to "{name[:60]}"{suggest(name[:60], TARGETS)}')
    target = TARGETS[name]
    missing = [package for package in target.needs if find_spec(package) is None]
    if missing:
        extra = target.needs[missing[0]]
        raise UsageError(
            f"--to {name} needs {' and '.join(missing)}, which this Python lacks; pip install 'smallview[{extra}]'"
        )
    return target


def check_holds(to: str, handed: Handed) -> None:
    """Whether the target can hold this encoder.

    Raises:
        UsageError: it cannot, with those that can.
    """
    reason = TARGETS[to].refusal(handed)
    if reason is not None:
        others = [name for name, other in TARGETS.items() if other.refusal(handed) is None]
        raise UsageError(f"--to {to} cannot hold {reason}; these can: {', '.join(others)}")
    if handed.input != "normalised" and not TARGETS[to].traced:
        able = [name for name, other in TARGETS.items() if other.traced]
        raise UsageError(
            f"--to {to} holds weights, which take normalised images; --input {handed.input} goes with {', '.join(able)}"
        )


def is_export(folder: Path) -> bool:
    """Whether a folder holds an earlier export and nothing else, so that it may be replaced."""
    names = {path.name for path in folder.iterdir()} - {"__pycache__"}
    try:
        return names <= FILES and "export" in _read_config(folder)["smallview"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
