"""Small data and light networks: S3L and light-moco."""

from __future__ import annotations

from dataclasses import replace

from smallview.joint_embedding import Method, Term
from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum
from smallview.objectives import InfoNCE, NearestSmoothing, Queue
from smallview.optimizers import SGD
from smallview.presets.attracting import byol
from smallview.presets.record import Preset
from smallview.presets.repelling import moco_v2, simclr
from smallview.schedules import Delayed
from smallview.views.view import View


def light_moco() -> Preset:
    """MoCo for light networks: low temperature, wide head, smoothed targets. No teacher; both directions, summed. Cost 8/3.

    From the authors' code: temperature 0.1, a head of 2048 without BatchNorm, three epochs of warm-up out of a hundred, no smoothing
    before its end. Not known: which smoothing the figures used, the epochs, the learning rate per network.
    """
    return Preset(
        method=Method(
            views=(View(), View()),
            heads=Heads(projector=MLP(hidden=(2048,), out=128, batch_norm=False)),
            target=Momentum(momentum=0.99),
            negatives=Queue(size=4096),
            objective={"contrastive": Term(1.0, InfoNCE(0.1, soft_targets=LIGHT_SMOOTHING, directions="sum"))},
        ),
        optimizer=SGD(lr=0.06, weight_decay=1e-4, warmup=0.03, nesterov=False),
        source="Lin et al., 2022: Establishing a Stronger Baseline for Lightweight Contrastive Models",
        status="reconstructed",
        uncertain=(
            "encoder",
            "optimizer.lr",
            "method.target.momentum",
            "method.negatives.size",
            "method.objective.contrastive.loss.soft_targets",
        ),
        encoder="mobilenetv3_large_100",
    )


LIGHT_SMOOTHING = NearestSmoothing(Delayed(0.2, until=0.03), 20, groups=((2, 0.5), (8, 0.25), (20, 0.25)))


def s3l_moco() -> Preset:
    """S3L's MoCo v2: plain heads, one direction, a queue of 4,096 embeddings. For small data at small resolution. Cost 4/3.

    From the authors' code for 5,994 pictures of birds: SGD 0.03 at batch 128, momentum 0.999, 200 to 1,200 epochs. The target's momentum
    is rescaled from 800 of those epochs to the length of the run.
    """
    base = moco_v2()
    return replace(
        base,
        method=replace(
            base.method,
            heads=Heads(projector=MLP(hidden=(1024,), out=128, batch_norm=False)),
            target=Momentum(momentum=0.999, reference_steps=37_000),
        ),
        optimizer=SGD(lr=0.06, weight_decay=1e-4, warmup=0.0, nesterov=False),
        source="Cao and Wu, 2021: Rethinking Self-Supervised Learning, Small is Beautiful",
        status="published",
        uncertain=("method.heads.projector.hidden", "method.target.reference_steps"),
        batch_size=128,
    )


def s3l_simclr() -> Preset:
    """S3L's SimCLR: temperature 0.1, and 1.43 times the loss NT-Xent. Its learning rate presumes so. Cost 2.

    From the authors' code: SGD 0.5 at batch 512, 200 to 800 epochs; the factor is temperature over 0.07.
    """
    base = simclr()
    return replace(
        base,
        method=replace(
            base.method,
            heads=Heads(projector=MLP(hidden=(2048,), out=128, batch_norm=False)),
            objective={"contrastive": Term(0.1 / 0.07, InfoNCE(temperature=0.1))},
        ),
        optimizer=SGD(lr=0.25, weight_decay=1e-4, warmup=0.0, nesterov=False),
        source="Cao and Wu, 2021: Rethinking Self-Supervised Learning, Small is Beautiful",
        status="published",
        uncertain=("method.views", "optimizer.weight_decay"),
        batch_size=512,
    )


def s3l_byol() -> Preset:
    """S3L's BYOL: heads of 2048, the target's momentum 0.99 throughout. Both directions summed. Cost 8/3.

    From the authors' code: SGD 0.125 at batch 128, 800 epochs.
    """
    base = byol()
    head = MLP(hidden=(2048,), out=128)
    return replace(
        base,
        method=replace(base.method, views=(View(), View()), heads=Heads(head, head), target=Momentum(momentum=0.99)),
        optimizer=SGD(lr=0.25, weight_decay=1e-4, warmup=0.0, nesterov=False),
        source="Cao and Wu, 2021: Rethinking Self-Supervised Learning, Small is Beautiful",
        status="published",
        uncertain=("method.views", "optimizer.weight_decay"),
        batch_size=128,
    )
