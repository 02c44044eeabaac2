"""`patches`: an encoder whose first layer is a dictionary of whitened patches, fitted in seconds, with trained layers behind it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallview.errors import UsageError
from smallview.seeds import generator

NAME = "patches"
WIDTHS = (128, 192, 512)
MOST, WIDEST = 8, 4096
SIDE = 6  # of a patch, in pixels
PATCHES, ROUNDS = 50_000, 8
IN_CACHE = 2**14  # pixels of pictures whose maps are made at a time
EVENED = 300  # pictures that tell the mean and the deviation of the dictionary's features
CONTRAST, WHITE, THRESHOLD = 0.15, 0.1, 0.5  # on pictures of deviation 1
SHARE = 0.1  # the deviation that the dictionary's features get, about half that of trained ones: more costs neighbours and few labels dearly


def words_of(name: str) -> tuple[int, ...] | None:
    """The words of the dictionary and the widths behind it that an encoder's name says; None for any other name.

    Raises:
        UsageError: numbers that cannot be read or built.

    Example:
        >>> words_of("patches"), words_of("patches:64-96"), words_of("resnet18")
        ((128, 192, 512), (64, 96), None)
    """
    head, colon, said = name.partition(":")
    if head != NAME:
        return None
    if not colon:
        return WIDTHS
    parts = said.split("-")
    if 2 <= len(parts) <= MOST and all(re.fullmatch("[1-9][0-9]{0,3}", part) and int(part) <= WIDEST for part in parts):
        return tuple(int(part) for part in parts)
    raise UsageError(
        f'the encoder "{NAME}:{said[:60]}" cannot be built; wanted 2 to {MOST} numbers from 1 to {WIDEST}, the words of the dictionary and the '
        f"widths of the layers behind it, as in {NAME}:128-192-512"
    )


class Dictionary(nn.Module):
    """How much each patch of a picture is like each of K words: [B, C, S, S] -> maps [B, K, S', S'] that are 0 for most words.

    A patch is brought to mean 0 and deviation 1, whitened, and compared with words of unit length; what is under the threshold is 0. Words
    are drawn at first, and found by `fit`: spherical k-means on whitened patches. Nothing in here has a gradient.

    Source: Coates, Ng and Lee, 2011 (whitened patches, k-means, soft threshold).

    Example:
        >>> Dictionary(in_channels=3, words=16)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 16, 32, 32])
    """

    kernels: Tensor
    shift: Tensor

    def __init__(self, in_channels: int, words: int, stride: int = 1) -> None:
        super().__init__()
        self.in_channels, self.stride = in_channels, stride
        drawn = F.normalize(torch.randn(words, in_channels * SIDE**2), dim=1)
        self.register_buffer("kernels", drawn.reshape(words, in_channels, SIDE, SIDE))  # whitening and words in one
        self.register_buffer("shift", torch.zeros(words))

    @torch.no_grad()
    def fit(self, pictures: Tensor, seed: int) -> None:
        """Find the words in patches of pictures [N, C, S, S], S >= 6, normalised as for training.

        Raises:
            ValueError: pictures smaller than a patch.
        """
        side = pictures.shape[-1]
        if side < SIDE:
            raise ValueError(f"pictures have {side} pixels a side; wanted {SIDE} or more for a dictionary of patches")
        random = generator(seed, "patches")
        which = torch.from_numpy(random.integers(len(pictures), size=PATCHES))
        rows, columns = torch.from_numpy(random.integers(side - SIDE + 1, size=(2, PATCHES)))
        windows = pictures.unfold(2, SIDE, 1).unfold(3, SIDE, 1)
        patches = windows[which, :, rows, columns].reshape(PATCHES, -1).double()
        patches = _even(patches)
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
        whitening = vectors @ torch.diag((values.clamp(min=0) + WHITE).rsqrt()) @ vectors.T
        words = _spherical_means(F.normalize((patches - mean) @ whitening, dim=1).float(), len(self.kernels), random)
        kernels = (whitening @ words.double().T).T  # (even patch - mean) @ whitening @ word, as one product and a shift
        self.shift.copy_(kernels @ mean)
        # a patch's own mean is taken away by the kernels: what they give of a constant is 0
        self.kernels.copy_((kernels - kernels.mean(1, keepdim=True)).reshape(self.kernels.shape))

    def forward(self, images: Tensor) -> Tensor:
        """Maps [B, K, S', S'], S' the side over the stride."""
        with torch.no_grad():
            before, after = (SIDE - self.stride) // 2, SIDE - self.stride - (SIDE - self.stride) // 2
            padded = F.pad(images, (before, after, before, after), mode="replicate")
            kind = (
                "cpu" if images.is_meta else images.device.type
            )  # shapes alone are asked for on no device, which has no autocast
            with torch.autocast(kind, enabled=False):  # a small deviation is the difference of two large numbers
                wide = padded.float().mean(1, keepdim=True), padded.float().square().mean(1, keepdim=True)
                mean, square = (F.avg_pool2d(x, SIDE, self.stride) for x in wide)
                spread = ((square - mean.square()).clamp(min=0.0) + CONTRAST).rsqrt()
            likeness = F.conv2d(padded, self.kernels.to(padded.dtype), stride=self.stride)
            threshold = (self.shift + THRESHOLD).to(likeness.dtype)[:, None, None]
            return likeness.mul_(spread.to(likeness.dtype)).sub_(threshold).relu_()

    def averaged(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(maps averaged over 2x2 places [B, K, S'/2, S'/2], over each quarter of the picture [B, 4 K]); the maps themselves are not kept.

        On a CPU some pictures at a time, so that their maps are worked on where they are, in its cache: the same bits in a third to two
        thirds of the time.
        """
        at_once = max(1, IN_CACHE // (images.shape[2] * images.shape[3]))
        whole = images.device.type != "cpu" or torch.compiler.is_compiling() or images.shape[0] <= at_once
        halved, quarters = [], []
        for part in (images,) if whole else images.split(at_once):
            maps = self(part)
            halved.append(F.avg_pool2d(maps, 2, ceil_mode=True))
            quarters.append(_quarters(maps))
        return (halved[0], quarters[0]) if whole else (torch.cat(halved), torch.cat(quarters))


def _even(patches: Tensor) -> Tensor:
    """Patches [n, d] of mean 0, and of deviation 1 where they have contrast."""
    centred = patches - patches.mean(1, keepdim=True)
    return centred * (centred.square().mean(1, keepdim=True) + CONTRAST).rsqrt()


def _spherical_means(points: Tensor, k: int, random: np.random.Generator) -> Tensor:
    """Unit means [k, d] of unit points [n, d], each of those nearest to it by angle; one that nobody is near to begins anew."""
    means = points[torch.from_numpy(random.permutation(len(points))[:k])]
    for _ in range(ROUNDS):
        nearest = (points @ means.T).argmax(1)
        sums = torch.zeros_like(means).index_add_(0, nearest, points)
        idle = sums.norm(dim=1) < 1e-6
        fresh = points[torch.from_numpy(random.integers(len(points), size=k))]
        means = torch.where(idle[:, None], fresh, F.normalize(sums, dim=1))
    return means


class OnPatches(nn.Module):
    """Trained 3x3 convolutions on a dictionary's maps, and the dictionary itself in quarters: [B, C, S, S] -> [B, F + 4 K].

    The maps are averaged over 2x2 places; the first two layers halve them again, and the average of the last map is the first F features:
    the ones that a projector sees and that training shapes (`projected`). The others, the average of each map over each quarter of the
    picture, are fixed. With the `standard` stem, for larger pictures, the dictionary takes every second place.

    Example:
        >>> OnPatches(widths=(16, 8, 12))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 76])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, in_channels: int = 3, stem: str = "small", widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        words, *behind = widths
        self.dictionary = Dictionary(in_channels, words, 1 if stem == "small" else 2)
        # the convolution behind it scales as well, and without a weight here no gradient has to go back through that convolution
        self.norm = nn.BatchNorm2d(words, affine=False)
        layers: list[nn.Module] = []
        before = words
        for i, width in enumerate(behind):
            layers += [
                nn.Conv2d(before, width, 3, 2 if i < 2 else 1, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            before = width
        self.body = nn.Sequential(*layers)
        for module in self.body:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.projected, self.num_features = before, before + 4 * words
        self.register_buffer("mean", torch.zeros(4 * words))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, pictures: Tensor, seed: int) -> None:
        """Find the dictionary in pictures [N, C, S, S], normalised as for training."""
        self.dictionary.fit(pictures, seed)
        quarters = self.dictionary.averaged(pictures[:EVENED])[1]
        self.mean.copy_(quarters.mean(0))
        self.scale.copy_(SHARE / (quarters - self.mean).square().mean().sqrt().clamp(min=1e-6))

    def cut(self, layers: int) -> None:
        """Keep the first layers alone; the dictionary stays whole."""
        self.body = self.body[: 3 * layers]
        last: Any = self.body[3 * layers - 3]
        self.projected, self.num_features = last.out_channels, last.out_channels + len(self.mean)

    def dictionary_shape(self) -> dict[str, Any]:
        """What a program needs, beside the layers, to build it anew."""
        told = {"stride": self.dictionary.stride, "side": SIDE, "contrast": CONTRAST, "threshold": THRESHOLD}
        return {"words": len(self.dictionary.kernels), "dictionary": told}

    def take_dictionary(self, other: OnPatches) -> None:
        """All that is fitted, of another one of the same shape."""
        self.dictionary.load_state_dict(other.dictionary.state_dict())
        self.mean.copy_(other.mean)
        self.scale.copy_(other.scale)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, F + 4 K] of images [B, C, S, S]."""
        halved, quarters = self.dictionary.averaged(images)
        trained: Tensor = self.body(self.norm(halved)).mean((2, 3))
        return torch.cat([trained, ((quarters - self.mean) * self.scale).to(trained.dtype)], 1)


def _quarters(maps: Tensor) -> Tensor:
    """The average over each quarter of maps [B, K, h, w]: [B, 4 K]; with an odd side, the middle counts on both."""
    high, wide = maps.shape[2], maps.shape[3]
    rows, columns = (slice((high + 1) // 2), slice(high // 2, high)), (slice((wide + 1) // 2), slice(wide // 2, wide))
    return torch.cat([maps[:, :, row, column].mean((2, 3)) for row in rows for column in columns], 1)
