"""Encoders: this project's own, any of timm's by name, or your own module; with a stem that fits small pictures."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smallview.errors import SmallviewError, UsageError, suggest
from smallview.files import check_version, close_path
from smallview.networks.dense_small import DenseSmall, strides_of, widths_of
from smallview.networks.modes import evaluating
from smallview.networks.patches import OnPatches, words_of
from smallview.networks.truncating import count_stages, truncate

_log = logging.getLogger("smallview.networks")
OWN = ("dense_small", "patches")
SMALLEST_MAP = 4
FORMAT_VERSION = 1


@dataclass(frozen=True)
class EncoderConfig:
    """What encoder/config.json says: enough to build the encoder again and to feed it.

    architecture: `dense_small`, `dense_small:48-96-192` with widths of one's own, `patches`, a timm name, or `custom:<class>`. features: F. mean,
    std:
    normalisation of pictures in [0, 1]. depth: the number of stages that were kept; none: all. made_for: the size that it was built for,
    where it is another one than pictures have.
    """

    architecture: str
    stem: str
    in_channels: int
    size: int
    features: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    format_version: int = FORMAT_VERSION
    depth: int | None = None
    made_for: int | None = None


def final_map(size: int, reduction: int) -> int:
    """The side of the final feature map.

    Example:
        >>> final_map(112, 32), final_map(64, 32)
        (4, 2)
    """
    return -(-size // reduction)


def _small_resnet(net: nn.Module, size: int) -> bool:
    conv, pool = getattr(net, "conv1", None), getattr(net, "maxpool", None)
    if not isinstance(conv, nn.Conv2d) or pool is None:
        return False
    # one 3x3 convolution at full size in place of a 7x7 one at half size and a pooling (Chen et al., 2020, appendix B.9)
    net.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, 1, 1, bias=conv.bias is not None)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return True


def _small_mobile(net: nn.Module, size: int) -> bool:
    stem, blocks = getattr(net, "conv_stem", None), getattr(net, "blocks", None)
    if not isinstance(stem, nn.Conv2d) or blocks is None:
        return False
    stem.stride = (1, 1)
    for module in blocks.modules():
        if isinstance(module, nn.Conv2d) and module.stride[0] == 2:
            module.stride = (1, 1)
            return True
    return False


def _create(name: str, size: int, **options: Any) -> nn.Module:
    """The encoder that timm builds; what it complains about, in one line."""
    import timm

    try:
        net: nn.Module = timm.create_model(name, **options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f'timm cannot build "{name}" for pictures of {size} pixels: {reason}; choose another encoder'
        ) from error
    return net


def vit_options(name: str, size: int, stem: str) -> tuple[dict[str, Any], str] | None:
    """What timm is told to build a vision transformer for pictures of `size`, and the stem that this is; None for other encoders.

    The position embeddings are made for `size`, and follow other sizes by interpolation.

    Example:
        >>> vit_options("vit_tiny_patch16_224", 32, "auto")[1], vit_options("resnet18", 32, "auto")
        ('small', None)
    """
    if "vit" not in name or name.split("_")[0] not in ("vit", "deit", "deit3"):
        return None
    patch = next((int(part[5:]) for part in name.split("_") if part.startswith("patch") and part[5:].isdigit()), 16)
    small = stem == "small" or (stem == "auto" and size // patch < SMALLEST_MAP)
    if small:
        patch = max(1, size // 8)
    side = size - size % patch
    options = {"img_size": side, "patch_size": patch, "dynamic_img_size": True, "dynamic_img_pad": True}
    return options, "small" if small else "standard"


def _timm_encoder(name: str, in_channels: int, size: int, stem: str) -> tuple[nn.Module, str]:
    import timm

    known = timm.list_models()
    if name.split(".")[0] not in known:
        shown = name if len(name) < 80 and name.isprintable() else ascii(name[:60])[1:-1] + "..."
        hint = suggest(name, [*OWN, *known]) if len(name) < 80 else ""
        raise UsageError(f'no encoder is called "{shown}"{hint}'.split("; there are")[0])
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": in_channels}
    if (fitted := vit_options(name, size, stem)) is not None:
        net = _create(name, size, **fitted[0], **options)
        return net, fitted[1]
    net = _create(name, size, **options)
    stages: Any = getattr(net, "feature_info", None)
    reduction = int(stages[-1]["reduction"]) if stages else 32
    wanted = stem == "small" or (stem == "auto" and final_map(size, reduction) < SMALLEST_MAP)
    if not wanted:
        return net, "standard"
    if _small_resnet(net, size) or _small_mobile(net, size):
        return net, "small"
    if stem == "small":
        raise UsageError(
            f'--stem small is known for ResNets, MobileNetV3, EfficientNet and ViT, not for "{name}"; use --stem standard'
        )
    _log.warning(
        "%s keeps its standard stem: %d-pixel views end in a %dx%d map; small stems are known for ResNets, MobileNetV3, EfficientNet, ViT",
        name,
        size,
        final_map(size, reduction),
        final_map(size, reduction),
    )
    return net, "standard"


def build_encoder(
    name: str, *, in_channels: int = 3, size: int = 32, stem: str = "auto", seed: int = 0, depth: int | None = None
) -> tuple[nn.Module, EncoderConfig]:
    """An encoder with fresh weights that depend on `seed` alone, and its description.

    name: `dense_small`, with widths of one's own as in `dense_small:48-96-192-512`; `patches`, a dictionary with layers behind it;
    or a timm name. stem "auto" takes the small stem when
    the final feature map would be under 4x4. depth: the number of stages to keep, all by default. Stem and weights are those of the
    whole encoder whatever the depth, so that one grows into the other.

    Raises:
        UsageError: an unknown name, or a stem or depth that the encoder cannot have.

    Example:
        >>> net, config = build_encoder("dense_small", size=32)
        >>> config.features, config.stem
        (512, 'small')
    """
    if stem not in ("auto", "standard", "small"):
        raise UsageError(f'--stem is "{stem}"; wanted auto, standard or small')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if (widths := widths_of(name)) is not None:
            reduction = math.prod(strides_of("standard", len(widths)))
            chosen = ("small" if final_map(size, reduction) < SMALLEST_MAP else "standard") if stem == "auto" else stem
            net: nn.Module = DenseSmall(in_channels, chosen, widths)
        elif (words := words_of(name)) is not None:
            reduction = 2 ** min(len(words) + 1, 4)
            chosen = ("small" if final_map(size, reduction) < SMALLEST_MAP else "standard") if stem == "auto" else stem
            net = OnPatches(in_channels, chosen, words)
        else:
            net, chosen = _timm_encoder(name, in_channels, size, stem)
    if depth is not None:
        whole, net = net, truncate(net, depth)
        depth = depth if depth < count_stages(whole) else None
    return net, EncoderConfig(name, chosen, in_channels, size, count_features(net, in_channels, size), depth=depth)


def describe(module: nn.Module, *, in_channels: int, size: int) -> EncoderConfig:
    """The description of a module of the user's own: [B, C, S, S] -> [B, F]."""
    return EncoderConfig(
        f"custom:{type(module).__name__}", "standard", in_channels, size, count_features(module, in_channels, size)
    )


def count_features(module: nn.Module, in_channels: int, size: int) -> int:
    """F of an encoder, found by encoding two empty pictures.

    Raises:
        UsageError: the module does not take [B, C, S, S] or does not return [B, F].
    """
    try:
        with torch.no_grad(), evaluating(module):
            like = next(module.parameters(), torch.zeros(1))
            out = module(torch.zeros(2, in_channels, size, size, dtype=like.dtype, device=like.device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(
            f"the encoder {type(module).__name__} does not take pictures [2, {in_channels}, {size}, {size}]: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(out, Tensor) or out.dim() != 2:
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UsageError(
            f"the encoder {type(module).__name__} returns {got}; wanted features [B, F]: pool and flatten its output"
        )
    return int(out.shape[1])


def uses_depthwise(module: nn.Module) -> bool:
    """Whether any convolution works on groups of channels."""
    return any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in module.modules())


def save_encoder(module: nn.Module, config: EncoderConfig, folder: Path) -> None:
    """Write model.safetensors and config.json; equal weights give equal bytes (no times, no paths)."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
    # what is whole is read by earlier versions too
    said = {name: value for name, value in asdict(config).items() if value is not None}
    for name, content in (
        ("model.safetensors", save(tensors)),
        ("config.json", (json.dumps(said, indent=2) + "\n").encode()),
    ):
        partial = folder / f"{name}.part"
        partial.write_bytes(content)
        partial.replace(folder / name)


def load_encoder(folder: str | Path, into: nn.Module | None = None) -> tuple[nn.Module, EncoderConfig]:
    """The encoder of a run folder or an encoder folder, in evaluation mode.

    Raises:
        SmallviewError: no encoder there, damaged files, or weights that do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    root = Path(folder)
    if not root.exists():
        raise UsageError(
            f"no run or encoder folder at {root}{close_path(root)}; wanted one, or a timm name with its tag, as in resnet18.a1_in1k"
        )
    place = root / "encoder" if (root / "encoder").is_dir() else root
    if not (place / "config.json").is_file() or not (place / "model.safetensors").is_file():
        hint = (
            "the run has not finished: run the same pretrain command to go on"
            if (root / "run.toml").exists()
            else "wanted a run folder"
        )
        raise UsageError(f"{root} holds no encoder (config.json and model.safetensors); {hint}")
    try:
        raw = json.loads((place / "config.json").read_text())
        check_version(raw, FORMAT_VERSION, f"the encoder in {place}")
        config = EncoderConfig(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})
        tensors = load_file(place / "model.safetensors")
    except (SafetensorError, ValueError, TypeError, KeyError, OSError) as error:
        raise SmallviewError(
            f"the encoder in {place} is damaged ({type(error).__name__}: {error}); copy it again or train anew"
        ) from error
    if into is not None:
        net = into
    elif config.architecture.startswith("custom:"):
        raise UsageError(
            f"the encoder in {place} is a module of your own ({config.architecture[7:]}); pass it: load(path, into=module)"
        )
    else:
        net, _ = build_encoder(
            config.architecture,
            in_channels=config.in_channels,
            size=config.made_for or config.size,
            stem=config.stem,
            depth=config.depth,
        )
    try:
        net.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise SmallviewError(
            f"the weights in {place} do not fit {config.architecture}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return net.eval(), config
