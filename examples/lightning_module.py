"""smallview's loss and views inside a LightningModule; the trainer, the optimizer and the network stay yours.

    python examples/lightning_module.py                 # sklearn's digits, no download: pip install lightning
    python examples/lightning_module.py --steps 10
    python examples/lightning_module.py --method byol --pictures photos/ --size 64   # that method's views, under the same loss

A ViewLoader is an iterable with a length, which is all that a trainer asks of a loader; each epoch has an order and views of its own.
"""

import argparse

import lightning
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import smallview as sv
from smallview.networks.encoders import build_encoder
from smallview.objectives import EqCo, info_nce


class Contrastive(lightning.LightningModule):
    """An encoder with a projector, trained by InfoNCE with EqCo's margin: worth 256 negatives at any batch size."""

    def __init__(self, channels: int, size: int, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.encoder, described = build_encoder("dense_small:32-64-128", in_channels=channels, size=size)
        features = described.features
        self.projector = nn.Sequential(nn.Linear(features, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))

    def training_step(self, views: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """The loss of two views [B, C, S, S] of the same pictures, each in turn the query."""
        z0, z1 = self.projector(self.encoder(torch.cat(views[:2]))).chunk(2)
        loss = (info_nce(z0, z1, temperature=0.2, margin=EqCo(256)) + info_nce(z1, z0, temperature=0.2, margin=EqCo(256))) / 2
        if batch_idx % 5 == 0:
            print(f"step {self.global_step}  loss {loss.item():.4f}", flush=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW at one rate."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pictures", help="a folder, or anything else that pretrain takes; without it: sklearn's digits")
parser.add_argument("--method", default="simclr", help="whose views")
parser.add_argument("--size", type=int, default=16)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--steps", type=int, default=100)
given = parser.parse_args()

lightning.seed_everything(0)
digits = (load_digits().images * 15.9).astype(np.uint8)  # 0.0 to 16.0 -> uint8 [1797, 8, 8]
views = sv.method(given.method).views[:2]
loader = sv.ViewLoader(given.pictures or digits, views, size=given.size, batch_size=given.batch_size)
module = Contrastive(loader.channels, given.size)
trainer = lightning.Trainer(
    max_steps=given.steps,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, loader)
