"""A training loop of your own with smallview's losses: plain PyTorch, torchvision's disturbances, any encoder.

    python examples/plain_loop.py                                     # sklearn's digits, a small net, no download
    python examples/plain_loop.py --loss relic --epochs 10
    python examples/plain_loop.py --pictures photos --size 64 --encoder resnet18
    python examples/plain_loop.py --views lightly                     # lightly's views and collate: pip install lightly

A loss is a function of two embeddings [B, D] of the same pictures and asks nothing of the rest. The settings are no paper's.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from torchvision.transforms import v2

from smallview.objectives import EqCo, NearestSmoothing, info_nce, relic


def contrastive(query: Tensor, key: Tensor) -> Tensor:
    """InfoNCE worth 256 negatives at any batch size, with a tenth of the target on the three pictures most alike."""
    return info_nce(query, key, temperature=0.2, margin=EqCo(256), soft_targets=NearestSmoothing(0.1, nearest=3))


def invariant(query: Tensor, key: Tensor) -> Tensor:
    """ReLIC: InfoNCE, and a divergence of whom the two views resemble."""
    return torch.stack(relic(query, key, temperature=0.2)).sum()


class Views(Dataset[tuple[Any, int, str]]):
    """Disturbed views of each picture; lightly's collate wants a label and a name too, at which nobody here looks."""

    def __init__(self, pictures: list[Any], transform: Any) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Any, int, str]:
        picture = self.pictures[i]
        image = Image.open(picture) if isinstance(picture, Path) else Image.fromarray(picture)
        return self.transform(image.convert("RGB")), 0, str(i)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pictures", type=Path, help="a folder of JPEG and PNG files; without it: sklearn's digits")
parser.add_argument("--limit", type=int, help="so many pictures only")
parser.add_argument("--size", type=int, default=32)
parser.add_argument("--encoder", choices=["small", "resnet18"], default="small")
parser.add_argument("--loss", choices=["contrastive", "relic"], default="contrastive")
parser.add_argument("--views", choices=["torchvision", "lightly"], default="torchvision")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--batch-size", type=int, default=128)
given = parser.parse_args()
torch.manual_seed(0)

digits = (load_digits().images[..., None] * 15.9).astype(np.uint8).repeat(3, axis=3)  # 0.0 to 16.0 -> uint8 [1797, 8, 8, 3]
files = sorted(p for p in given.pictures.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"}) if given.pictures else []
pictures = (files if given.pictures else list(digits))[: given.limit]
if len(pictures) < given.batch_size:
    sys.exit(f"{len(pictures)} pictures fill no batch of {given.batch_size}; take more, or a smaller --batch-size")
if given.views == "lightly":
    try:
        from lightly.data.multi_view_collate import MultiViewCollate
        from lightly.transforms import SimCLRTransform
    except ImportError as error:
        sys.exit(f"--views lightly wants lightly, which is not here ({error}): pip install lightly, or leave --views out")
    transform, collate = SimCLRTransform(input_size=given.size), MultiViewCollate()
else:  # digits have no mirror images: for photos add v2.RandomHorizontalFlip()
    steps = [v2.RandomResizedCrop(given.size, (0.3, 1.0)), v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomGrayscale(0.2)]
    view = v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)])
    transform, collate = v2.Lambda(lambda image: [view(image), view(image)]), None
loader = DataLoader(Views(pictures, transform), given.batch_size, shuffle=True, drop_last=True, collate_fn=collate)

widths = [(3, 32), (32, 64), (64, 128)]
blocks = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in widths]
small = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
encoder, features = (small, 128) if given.encoder == "small" else (resnet18(num_classes=512), 512)
network = nn.Sequential(encoder, nn.Linear(features, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
loss_of = contrastive if given.loss == "contrastive" else invariant
for epoch in range(1, given.epochs + 1):
    losses = []
    for (view0, view1), _, _ in loader:
        z0, z1 = network(torch.cat([view0, view1])).chunk(2)  # [B, 64] each
        loss = (loss_of(z0, z1) + loss_of(z1, z0)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"epoch {epoch}  loss {np.mean(losses):.4f}", flush=True)
