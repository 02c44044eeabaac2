"""Frozen features: one pass, one centre view, evaluation mode, and proof that the encoder stayed what it was.

Legend: N pictures, F features, C channels, S the side of a view.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smallview.networks.encoders import EncoderConfig, build_encoder
from smallview.networks.modes import evaluating
from smallview.networks.patches import OnPatches
from smallview.optimizers import Optimizer
from smallview.records import Pictures
from smallview.seeds import derive, generator
from smallview.views.making import centre_part, centre_views
from smallview.views.view import View

PIXEL_SIDE = 32


@dataclass(frozen=True)
class Training:
    """How an encoder was trained, as far as a training with labels can do the same: views, optimizer, batch and steps.

    size, depth, encoder: of its views and of itself, where they are others than in the end. before: the stages that it went through first.
    """

    views: tuple[View, ...]
    optimizer: Optimizer
    batch_size: int
    steps: int
    size: int | None = None
    depth: int | None = None
    encoder: str | None = None
    before: tuple[Training, ...] = ()


@dataclass(frozen=True)
class Judged:
    """What evaluation sees: an encoder, how to feed it, and where it came from.

    projector: [B, F] -> [B, D], and how it was trained, where they are known.
    """

    encoder: nn.Module
    config: EncoderConfig
    name: str
    seed: int
    cost: dict[str, float]
    projector: nn.Module | None = None
    training: Training | None = None


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of every parameter and buffer.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = weights_hash(layer)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> before == weights_hash(layer)
        False
    """
    digest = hashlib.sha256()
    # not state_dict(): that leaves out buffers which are not saved, and they can carry labels as well as any
    for name, value in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]:
        flat = value.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(flat.shape)}{flat.dtype}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def view_text(pictures: Pictures, size: int) -> str:
    """The one centre view, in words for a protocol string."""
    part = centre_part(pictures, size)
    return f"one centre view {size} px" + (" of the whole picture" if part == 1.0 else f", centre {part} of the short side")


def extract(
    encoder: nn.Module,
    config: EncoderConfig,
    pictures: Pictures,
    *,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
    batch_size: int = 256,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """Features float32 [N, F] of every picture, in the pack's order, from the encoder in evaluation mode.

    into: where they are written, such as a memory map for more of them than memory holds.
    """
    out = torch.empty(len(pictures), config.features) if into is None else into
    done = 0
    views = centre_views(pictures, config.size, config.mean, config.std, batch_size, threads)
    for features in features_of(encoder, views, device, memory_format):
        out[done : done + len(features)] = features
        done += len(features)
        if progress:
            progress(done, len(pictures))
    return out


@torch.no_grad()
def features_of(
    encoder: nn.Module, views: Iterable[Tensor], device: torch.device | str, memory_format: torch.memory_format
) -> Iterator[Tensor]:
    """Features float32 [B, F] on the CPU of each batch of views, as they come, from the encoder in evaluation mode.

    The next batch of views may be written over the last one: no features are a part of it.
    """
    kept: Tensor | None = None
    with evaluating(encoder):
        for batch in views:
            laid = batch.to(device)
            if not laid.is_contiguous(memory_format=memory_format):
                # in one place for all batches: new memory for each would cost more than the copy
                if kept is None or kept.shape != laid.shape:
                    kept = torch.empty_like(laid, memory_format=memory_format)
                laid = kept.copy_(laid)
            features = encoder(laid).float().cpu()
            yield features.clone() if _share(features, laid) or _share(features, batch) else features


def _share(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def pixel_side(size: int, *parts: Pictures) -> int:
    """The side of the pixel floor's views, one for all parts: at most 32 and `size`, and no set of one size is enlarged."""
    return max(1, min(size, PIXEL_SIDE, *(min(part.one_size) for part in parts if part.one_size is not None)))


def raw_pixels(pictures: Pictures, size: int) -> Tensor:
    """The floor without any network: the centre view's own pixels, at most 32 x 32 and never enlarged, flattened, float32 [N, C * S * S]."""
    side = pixel_side(size, pictures)
    plain = [0.0] * pictures.channels, [1.0] * pictures.channels
    return torch.cat([views.flatten(1) for views in centre_views(pictures, side, *plain)])


def untrained_like(encoder: nn.Module, seed: int) -> nn.Module:
    """The same architecture with fresh weights: every layer that can, draws its start values again.

    Weights of a layer that cannot are shuffled, entry by entry: their sizes stay, what they have learned goes.
    """
    fresh = copy.deepcopy(encoder).cpu()  # drawn on the CPU: the same start on every device
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for p in module.parameters(recurse=False):
                p.copy_(p.flatten()[torch.randperm(p.numel())].view_as(p))
    return fresh


def fresh_encoder(encoder: nn.Module, config: EncoderConfig, seed: int) -> nn.Module:
    """The architecture of an encoder as a run with this seed would start it."""
    if config.architecture.startswith("custom:"):
        return untrained_like(encoder, seed)
    fresh, _ = build_encoder(
        config.architecture,
        in_channels=config.in_channels,
        size=config.made_for or config.size,
        stem=config.stem,
        seed=derive(seed, "encoder"),
        depth=config.depth,
    )
    if isinstance(fresh, OnPatches) and isinstance(encoder, OnPatches):
        fresh.take_dictionary(encoder)  # a run begins with it
    return fresh


@torch.no_grad()
def recalibrate(encoder: nn.Module, config: EncoderConfig, pictures: Pictures, most: int = 2560) -> nn.Module:
    """Give a network's BatchNorm layers the statistics of these pictures, so that the untrained floor is a fair one.

    Up to `most` pictures, drawn over the whole set: a folder lists one class after the other. All else stays in evaluation mode.
    """
    norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return encoder
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a plain average over the batches
    encoder.eval()
    for m in norms:
        m.train()
    which = generator(0, "recalibrate").permutation(len(pictures))[:most]
    for views in centre_views(pictures, config.size, config.mean, config.std, which=which):
        if len(views) > 1:
            encoder(views)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
    return encoder.eval()
