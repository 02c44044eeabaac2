"""Runs the Triton kernels in Triton's interpreter, on the CPU, and prints how far their views are from torch's, in grey levels."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined

import numpy as np
import torch

from smallview.views import kernel_torch, kernel_triton, sampling
from smallview.views.view import View

VIEWS = {
    "default": View(),
    "blur and solarize": View(jitter=1.0, hue=0.5, blur=0.7, blur_sigma=(5.0, 50.0), solarize=0.5, solarize_threshold=0.0),
    "flip and noise": View(jitter=0.0, noise=0.1, flip=1.0),
    "gray": View(grayscale=1.0, jitter=1.0),
    "small boxes": View(scale=(0.01, 0.02), jitter=1.0, contrast=0.0),
}


def main() -> None:
    random = np.random.default_rng(0)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.25, 0.2, 0.25])
    found = {}
    for tall, wide, size in ((32, 32, 32), (40, 25, 16), (7, 90, 20), (1, 1, 4), (300, 5, 32), (70, 80, 67)):
        images = torch.from_numpy(random.integers(0, 256, (5, 3, tall, wide), np.uint8))
        heights, widths = np.full(5, tall), np.full(5, wide)
        heights[0], widths[1] = max(1, tall // 2), max(1, wide // 2)  # smaller pictures stand in the corner
        for name, view in VIEWS.items():
            drawn = sampling.draw(view, 0, size, heights, widths, np.arange(5), 0, 0)
            crops = kernel_torch.crop_resize(images, heights, widths, drawn)
            theirs = kernel_torch.disturb(crops, view, drawn, mean, std)
            ours = kernel_triton.make_view(images, heights, widths, view, drawn, mean, std)
            found[f"{name}, {tall} x {wide} to {size}"] = float(((ours - theirs) * std[:, None, None]).abs().max()) * 255.0
    print(json.dumps(found))


if __name__ == "__main__":
    main()
