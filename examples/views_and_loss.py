"""smallview's views and loss in a loop of your own; network, optimizer and steps are plain PyTorch.

    python examples/views_and_loss.py                               # sklearn's digits, no download
    python examples/views_and_loss.py --steps 10
    python examples/views_and_loss.py --pictures photos/ --size 64

`plain_loop.py` is the same with views of torchvision or lightly. The settings are no paper's.
"""

import argparse
from itertools import chain, islice, pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import smallview as sv
from smallview.objectives import EqCo, info_nce

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pictures", help="a folder, or anything else that pretrain takes; without it: sklearn's digits")
parser.add_argument("--size", type=int, default=16)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--steps", type=int, default=100)
given = parser.parse_args()
torch.manual_seed(0)

digits = (load_digits().images * 15.9).astype(np.uint8)  # 0.0 to 16.0 -> uint8 [1797, 8, 8]
views = (sv.View(scale=(0.3, 1.0), flip=0.0),) * 2  # a mirrored digit is no digit; photos may flip
loader = sv.ViewLoader(given.pictures or digits, views, size=given.size, batch_size=given.batch_size)

widths = [loader.channels, 32, 64, 128]
layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)]
encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
projector = nn.Sequential(nn.Linear(128, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))
optimizer = torch.optim.AdamW([*encoder.parameters(), *projector.parameters()], lr=1e-3)

steps = islice(chain.from_iterable(iter(lambda: loader, None)), given.steps)  # epoch after epoch
for step, (view0, view1) in enumerate(steps, 1):  # [B, C, S, S] each, normalised
    z0, z1 = projector(encoder(torch.cat([view0, view1]))).chunk(2)
    loss = (info_nce(z0, z1, temperature=0.2, margin=EqCo(256)) + info_nce(z1, z0, temperature=0.2, margin=EqCo(256))) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 5 == 0:
        print(f"step {step}  loss {loss.item():.4f}", flush=True)
features = sv.embed(encoder, given.pictures or digits, size=given.size)
print("features", features.shape)
