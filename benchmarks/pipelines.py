"""Two SimCLR views of a picture, as this project and as each peer makes them, for the scripts that compare them.

One recipe: random resized crop (.2, 1), flip, jitter .4/.4/.4/.1 with p = .8, gray with p = .2, blur of sigma .1 to 2 with p = .5 where
asked for, normalised float32. The peers that go picture by picture need not stack their views to batches here, which favours them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from arms import Arm
from photos import Pixels
from PIL import Image
from torch import Tensor

from smallview.data.loading import batches
from smallview.records import Pictures
from smallview.views.making import ViewMaker
from smallview.views.view import View

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SCALE, JITTER, SIGMA = (0.2, 1.0), (0.4, 0.4, 0.4, 0.1), (0.1, 2.0)
SEEN = 256
Goal = tuple[float, float]
Views = Callable[[Any], Sequence[Tensor]]


def ours(pictures: Pictures, size: int, batch: int, blur: bool, name: str = "ours") -> Arm:
    """This project's views: drawn, made and normalised, a batch a call."""
    view = View(scale=SCALE, blur=0.5 if blur else 0.0, blur_sigma=SIGMA)
    maker = ViewMaker(pictures, (view, view), size, MEAN, STD, seed=0)
    n = len(pictures)
    feed, others = (batches(n, least, 0, 0, 10**9) for least in (min(batch, n), min(SEEN, n)))

    def call() -> int:
        return len(maker(next(feed))[0].images)

    return Arm(name, call, ours=True, sample=lambda: maker(next(others))[0].images)


def draws(pictures: Pictures, size: int, batch: int) -> Arm:
    """The part of our own work that only draws the parameters of both views."""
    view = View(scale=SCALE, blur=0.0)
    maker = ViewMaker(pictures, (view, view), size, MEAN, STD, seed=0)
    feed = batches(len(pictures), min(batch, len(pictures)), 0, 0, 10**9)
    return Arm("of ours: parameters drawn", lambda: len(maker.draw(next(feed))[0].flip), floor=True)


def picture_by_picture(
    name: str, make: Views, sources: Sequence[Any] | Pixels, batch: int, goal: Goal | None, note: str = ""
) -> Arm:
    """An arm whose views are made of one picture after the other."""
    at = 0

    def call() -> int:
        nonlocal at
        for i in range(at, at + batch):
            make(sources[i % len(sources)])
        at += batch
        return batch

    return Arm(name, call, goal=goal, note=note, sample=lambda: torch.stack([make(source)[0] for source in sources[:SEEN]]))


def in_pillow(pictures: Pixels) -> list[Image.Image]:
    """Pillow's own copies, made beforehand."""
    return [Image.fromarray(picture) for picture in pictures]


def torchvision_transform(size: int, blur: bool) -> Callable[[Any], Tensor]:
    """One view as torchvision's transforms of Pillow pictures make it."""
    from torchvision import transforms as t

    parts = [
        t.RandomResizedCrop(size, scale=SCALE),
        t.RandomHorizontalFlip(),
        t.RandomApply([t.ColorJitter(*JITTER)], p=0.8),
        t.RandomGrayscale(p=0.2),
        *([t.RandomApply([t.GaussianBlur(23, sigma=SIGMA)], p=0.5)] if blur else []),
        *(t.ToTensor(), t.Normalize(MEAN, STD)),
    ]
    composed: Callable[[Any], Tensor] = t.Compose(parts)
    return composed


def torchvision_pil(pictures: Pixels, size: int, batch: int, blur: bool, goal: Goal) -> Arm:
    """Torchvision's transforms on Pillow pictures that are already there."""
    one = torchvision_transform(size, blur)
    note = "blur has 23 taps whatever its sigma" if blur else ""
    return picture_by_picture("torchvision PIL", lambda x: (one(x), one(x)), in_pillow(pictures), batch, goal, note)


def lightly_transform(size: int) -> Views:
    """Lightly's own two views, without blur, at the strengths of this recipe."""
    from lightly.transforms import SimCLRTransform

    settings = {"cj_strength": 0.5, "cj_bright": 0.8, "cj_contrast": 0.8, "cj_sat": 0.8, "cj_hue": 0.2}
    made: Views = SimCLRTransform(
        input_size=size, gaussian_blur=0.0, min_scale=SCALE[0], normalize={"mean": list(MEAN), "std": list(STD)}, **settings
    )
    return made


def lightly(pictures: Pixels, size: int, batch: int, goal: Goal) -> Arm:
    """Lightly's SimCLRTransform on Pillow pictures."""
    note = "its steps for vertical flip, rotation and blur are there with probability 0, as it builds them"
    return picture_by_picture("lightly", lightly_transform(size), in_pillow(pictures), batch, goal, note)


def kornia(pictures: Pixels, size: int, batch: int, goal: Goal) -> Arm:
    """Kornia's augmentations of whole batches."""
    from kornia import augmentation as k

    one = torch.nn.Sequential(
        k.RandomResizedCrop((size, size), scale=SCALE, cropping_mode="resample", align_corners=False),
        *(k.RandomHorizontalFlip(p=0.5), k.ColorJitter(*JITTER, p=0.8), k.RandomGrayscale(p=0.2)),
        k.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    at = 0

    @torch.inference_mode()
    def views(rows: Any) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(pictures[rows]).permute(0, 3, 1, 2).float().div_(255)
        return one(x), one(x)

    def call() -> int:
        nonlocal at
        views(np.arange(at, at + batch) % len(pictures))
        at += batch
        return batch

    note = "crops by warping the whole batch (its faster mode here), without antialiasing"
    return Arm("kornia", call, goal=goal, note=note, sample=lambda: views(np.arange(min(SEEN, len(pictures))))[0].clone())


def albumentations(pictures: Pixels, size: int, batch: int, blur: bool, goal: Goal | None) -> Arm:
    """Albumentations on arrays."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network for a newer version
    import albumentations as a
    import cv2

    cv2.setNumThreads(1)
    parts = [
        a.RandomResizedCrop((size, size), scale=SCALE, interpolation=cv2.INTER_LINEAR),
        *(a.HorizontalFlip(p=0.5), a.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), p=0.8), a.ToGray(p=0.2)),
        *([a.GaussianBlur(blur_limit=0, sigma_limit=SIGMA, p=0.5)] if blur else []),
        *(a.Normalize(MEAN, STD), a.ToTensorV2()),
    ]
    one = a.Compose(parts)
    note = "resizes without antialiasing" + ("; taps of the blur follow its sigma" if blur else "")
    return picture_by_picture(
        "albumentations", lambda x: (one(image=x)["image"], one(image=x)["image"]), pictures, batch, goal, note
    )
