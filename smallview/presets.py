"""One method of the literature, one short function: its docstring says where it comes from, what was known, and what it costs.

Settings are for small budgets on small pictures unless the status is `published`; `uncertain` lists the fields that are this project's
own. Cost is in encoder passes per picture, see `training.cost.encoder_passes`; two views with gradient, SimCLR's, are 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from smallview.errors import UsageError, suggest
from smallview.joint_embedding import Method, Term
from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum, Shared
from smallview.objectives import (
    Alignment,
    BarlowTwins,
    CentreInvariance,
    Covariance,
    Decoupled,
    EqCo,
    Fixed,
    InBatch,
    InfoNCE,
    MeanSquared,
    NearestSmoothing,
    NoNegatives,
    Queue,
    Relational,
    RelicInvariance,
    SIGReg,
    Variance,
)
from smallview.optimizers import LARS, SGD, AdamW, Muon
from smallview.schedules import Cosine, Delayed, Ramp
from smallview.views.view import View

WEAK = View(jitter=0.0, grayscale=0.0, blur=0.0)
WHOLE = replace(WEAK, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
# the two BYOL presets of a view, which ReLICv2 and MoCo v3 take over
STRONG = View(scale=(0.08, 1.0), saturation=0.2, blur=1.0)
SOLARIZED = replace(STRONG, blur=0.1, solarize=0.2)


@dataclass(frozen=True)
class Preset:
    """A method with the settings its results depend on.

    encoder, batch_size, epochs: None leaves them to the defaults for the machine and the data. status says whether the settings
    are the authors' (published), adapted to small budgets, or put together because the authors' are not known (reconstructed);
    `uncertain` names the fields that are ours.
    """

    method: Method
    optimizer: SGD | AdamW | LARS | Muon
    source: str
    status: Literal["published", "adapted", "reconstructed"]
    uncertain: tuple[str, ...] = ()
    encoder: str | None = None
    batch_size: int | None = None
    epochs: float | None = None


def simclr() -> Preset:
    """SimCLR: two views of a picture attract, the others of the batch repel. One shared network. Cost 2."""
    return Preset(
        method=Method(
            views=(View(), View()),
            heads=Heads(projector=MLP(hidden=(512,), out=128)),
            target=Shared(),
            negatives=InBatch(),
            objective={"contrastive": Term(1.0, InfoNCE(temperature=0.2))},
        ),
        optimizer=AdamW(lr=2e-3),
        source="Chen et al., 2020: A Simple Framework for Contrastive Learning of Visual Representations",
        status="adapted",
        uncertain=("optimizer", "method.heads.projector.hidden", "method.objective.contrastive.loss.temperature"),
    )


def dcl() -> Preset:
    """DCL: SimCLR without the positive in the denominator, for small batches. Decoupled contrastive learning. Cost 2."""
    base = simclr()
    return replace(
        base,
        method=replace(base.method, objective={"contrastive": Term(1.0, InfoNCE(0.1, denominator=Decoupled()))}),
        source="Yeh et al., 2022: Decoupled Contrastive Learning",
        uncertain=("optimizer", "method.heads.projector.hidden"),
    )


def moco_v2() -> Preset:
    """MoCo v2: queries against a queue of keys from a momentum target. Cost 4/3.

    Its head has BatchNorm here, the authors' has none.
    """
    return Preset(
        method=Method(
            views=(View(seen_by="online"), View(seen_by="target")),
            heads=Heads(projector=MLP(hidden=(512,), out=128)),
            target=Momentum(momentum=0.99),
            negatives=Queue(size=4096),
            objective={"contrastive": Term(1.0, InfoNCE(temperature=0.2))},
        ),
        optimizer=AdamW(lr=2e-3),
        source="Chen et al., 2020: Improved Baselines with Momentum Contrastive Learning",
        status="adapted",
        uncertain=("optimizer", "method.target.momentum", "method.negatives.size", "method.heads"),
    )


def moco_v3() -> Preset:
    """MoCo v3: no queue; a predictor, and the keys of the same batch repel. Both directions, keys of the other view. Cost 8/3.

    The loss is scaled by twice the temperature and summed over directions, as the authors do.
    """
    return Preset(
        method=Method(
            views=(STRONG, SOLARIZED),
            heads=Heads(
                MLP(hidden=(512, 512), out=128, last_batch_norm=True), MLP(hidden=(512,), out=128, last_batch_norm=True)
            ),
            target=Momentum(momentum=Cosine(0.99, 1.0)),
            negatives=InBatch(views="positive"),
            objective={"contrastive": Term(2 * 0.2, InfoNCE(temperature=0.2, directions="sum"))},
        ),
        optimizer=AdamW(lr=2e-3),
        source="Chen, Xie and He, 2021: An Empirical Study of Training Self-Supervised Vision Transformers",
        status="adapted",
        uncertain=("optimizer", "method.target.momentum", "method.heads"),
    )


def simo() -> Preset:
    """SiMo: MoCo v2 without the queue; EqCo lets a few keys do for hundreds. Cost 4/3.

    Keys of the same batch, worth alpha negatives by a margin. The authors' recipe: ResNet-50, 200 epochs, SGD 0.03 at 256 queries,
    momentum 0.999, alpha 256. The abstract's claim is 4 negatives at MoCo v2's level; 16 are kept here.
    """
    base = moco_v2()
    return replace(
        base,
        method=replace(
            base.method,
            negatives=InBatch(16, views="positive"),
            objective={"contrastive": Term(1.0, InfoNCE(temperature=0.2, margin=EqCo(alpha=256)))},
        ),
        source="Zhu et al., 2020: EqCo, Equivalent Rules for Self-Supervised Contrastive Learning",
        uncertain=("optimizer", "method.target.momentum", "method.negatives.per_query", "method.heads"),
    )


def byol() -> Preset:
    """BYOL: predict the momentum target's embedding of the other view. Nothing repels. Cost 8/3."""
    strong = View(saturation=0.2)
    return Preset(
        method=Method(
            views=(strong, replace(strong, solarize=0.2)),
            heads=Heads(projector=MLP(hidden=(1024,), out=256), predictor=MLP(hidden=(1024,), out=256)),
            target=Momentum(momentum=Cosine(0.96, 1.0)),
            negatives=NoNegatives(),
            objective={"alignment": Term(1.0, Alignment())},
        ),
        optimizer=SGD(lr=0.3),
        source="Grill et al., 2020: Bootstrap Your Own Latent",
        status="adapted",
        uncertain=("optimizer", "method.target.momentum", "method.heads", "method.views"),
    )


def simsiam() -> Preset:
    """SimSiam: BYOL without momentum; the gradient stops at the target side. Cost 2.

    The authors' mean of two negative cosines is the mean of 2 - 2 cos at half weight, less a constant.
    """
    return Preset(
        method=Method(
            views=(View(), View()),
            heads=Heads(MLP(hidden=(512, 512), out=512, last_batch_norm=True), MLP(hidden=(128,), out=512)),
            target=Shared(stop_gradient=True),
            negatives=NoNegatives(),
            objective={"alignment": Term(0.5, Alignment(directions="mean"))},
        ),
        optimizer=SGD(lr=0.1),
        source="Chen and He, 2021: Exploring Simple Siamese Representation Learning",
        status="adapted",
        uncertain=("optimizer", "method.heads"),
    )


def barlow_twins() -> Preset:
    """Barlow Twins: the views' cross-correlation shall be the identity matrix. Cost 2."""
    return Preset(
        method=Method(
            views=(STRONG, SOLARIZED),
            heads=Heads(projector=MLP(hidden=(1024, 1024), out=1024)),
            target=Shared(),
            negatives=NoNegatives(),
            objective={"redundancy": Term(1.0, BarlowTwins(off_diagonal=0.0051))},
        ),
        optimizer=AdamW(lr=2e-3),
        source="Zbontar et al., 2021: Barlow Twins, Self-Supervised Learning via Redundancy Reduction",
        status="adapted",
        uncertain=("optimizer", "method.heads"),
    )


def vicreg() -> Preset:
    """VICReg: views meet, every dimension varies, no two dimensions tell the same. Cost 2.

    Weights 25, 25 and 1 with the variance term halved over the two views, as in the authors' code.
    """
    return Preset(
        method=Method(
            views=(STRONG, SOLARIZED),
            heads=Heads(projector=MLP(hidden=(1024, 1024), out=1024)),
            target=Shared(),
            negatives=NoNegatives(),
            objective={
                "invariance": Term(25.0, MeanSquared()),
                "variance": Term(25.0, Variance()),
                "covariance": Term(1.0, Covariance()),
            },
        ),
        optimizer=AdamW(lr=2e-3),
        source="Bardes, Ponce and LeCun, 2022: VICReg",
        status="adapted",
        uncertain=("optimizer", "method.heads"),
    )


def ressl() -> Preset:
    """ReSSL: resemble the queue's entries as the target's weak view does. Cost 4/3."""
    return Preset(
        method=Method(
            views=(View(seen_by="online"), replace(WEAK, seen_by="target")),
            heads=Heads(projector=MLP(hidden=(512,), out=128)),
            target=Momentum(momentum=0.99),
            negatives=Queue(size=4096),
            objective={"relation": Term(1.0, Relational(temperature=0.1, target_temperature=0.04))},
        ),
        optimizer=AdamW(lr=2e-3),
        source="Zheng et al., 2021: ReSSL, Relational Self-Supervised Learning with Weak Augmentation",
        status="adapted",
        uncertain=("optimizer", "method.heads.projector.hidden"),
    )


def lejepa() -> Preset:
    """LeJEPA: views meet at their centre, embeddings are pulled to a Gaussian. Seen from random directions. Cost 2.

    No target, no stop-gradient, no negatives: one weight between the two terms.
    """
    return Preset(
        method=Method(
            views=(STRONG, SOLARIZED),
            heads=Heads(projector=MLP(hidden=(512, 512), out=64)),
            target=Shared(),
            negatives=NoNegatives(),
            objective={"invariance": Term(0.95, CentreInvariance()), "gaussian": Term(0.05, SIGReg(slices=256))},
        ),
        optimizer=AdamW(lr=2e-3),
        source="Balestriero and LeCun, 2025: LeJEPA, Provable and Scalable Self-Supervised Learning Without the Heuristics",
        status="adapted",
        uncertain=("optimizer", "method.heads", "method.views", "method.objective.gaussian.weight"),
    )


def relic() -> Preset:
    """ReLIC: contrast, and a penalty where a disturbance changes who is similar. Cost 8/3."""
    return Preset(
        method=Method(
            views=(STRONG, SOLARIZED),
            heads=Heads(projector=MLP(hidden=(512,), out=128)),
            target=Momentum(momentum=Cosine(0.99, 1.0)),
            negatives=InBatch(views="positive"),
            objective={
                "contrastive": Term(1.0, InfoNCE(temperature=0.2)),
                "invariance": Term(1.0, RelicInvariance(temperature=0.2, convention="four_tensors")),
            },
        ),
        optimizer=AdamW(lr=2e-3),
        source="Mitrovic et al., 2020: Representation Learning via Invariant Causal Mechanisms",
        status="reconstructed",
        uncertain=("optimizer", "method.heads", "method.views", "method.target", "method.negatives", "method.objective"),
    )


def relic_v2() -> Preset:
    """ReLICv2: ReLIC on four large and two small views, some backgrounds masked. Cost 5.7.

    Masks of the foreground are by the border's colour unless given: docs/saliency.md. Small views are seen by the online network only;
    pairs of one view count; about ten negatives per query. What else the authors set is not known: alpha, temperature and crop areas
    are ours.
    """
    base = relic()
    large = [replace(view, mask_background=0.1) for view in (STRONG, SOLARIZED, STRONG, SOLARIZED)]
    small = replace(STRONG, size=3 / 7, scale=(0.05, 0.3), seen_by="online")
    return replace(
        base,
        method=replace(
            base.method,
            views=(*large, small, small),
            negatives=InBatch(10, views="positive"),
            objective={
                "contrastive": Term(1.0, InfoNCE(temperature=0.2, same_view=True)),
                "invariance": Term(1.0, RelicInvariance(temperature=0.2, same_view=True)),
            },
        ),
        source="Tomasev et al., 2022: Pushing the Limits of Self-Supervised ResNets (ReLICv2)",
    )


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


def simclr_small_batch() -> Preset:
    """SimCLR with 32 pictures a step: a larger base rate than linear scaling. Cost 2.

    From the authors' code: temperature 0.15, and base rates that double from batch 2048 to 256. The square-root rule does as much.
    """
    base = simclr()
    return replace(
        base,
        method=replace(base.method, objective={"contrastive": Term(1.0, InfoNCE(temperature=0.15))}),
        optimizer=AdamW(lr=2e-3, batch_rule="sqrt"),
        source="Bordes, Balestriero and Vincent, 2023: Towards Democratizing Joint-Embedding Self-Supervised Learning",
        uncertain=("optimizer", "method.heads.projector.hidden", "batch_size"),
        batch_size=32,
    )


def simclr_one_patch() -> Preset:
    """SimCLR whose only negative is one patch of one picture. Embedded anew at each step. Cost 2.

    The abstract says that this learns useful representations; how the patch was cut is not known. One negative keeps no two pictures
    apart: without BatchNorm behind the projector all of them meet in one point opposite the patch,
    and at temperatures above 0.1 they come too near to each other (docs/methods.md).
    """
    base = simclr()
    heads = Heads(projector=MLP(hidden=(512,), out=128, last_batch_norm=True))
    return replace(
        base,
        method=replace(
            base.method,
            heads=heads,
            negatives=Fixed(pictures=(0,), patches=1),
            objective={"contrastive": Term(1.0, InfoNCE(temperature=0.1))},
        ),
        source="Bordes, Balestriero and Vincent, 2023: Towards Democratizing Joint-Embedding Self-Supervised Learning",
        status="reconstructed",
        uncertain=("optimizer", "method.heads", "method.negatives", "method.objective.contrastive.loss.temperature"),
    )


def simclr_noise_only() -> Preset:
    """SimCLR whose views are the whole picture with Gaussian noise. No crop, no colour, no flip. Cost 2.

    The abstract says that this learns useful representations; the authors' strength of noise is not known.
    """
    base = simclr()
    noisy = replace(WHOLE, noise=0.2)
    return replace(
        base,
        method=replace(base.method, views=(noisy, noisy)),
        source="Bordes, Balestriero and Vincent, 2023: Towards Democratizing Joint-Embedding Self-Supervised Learning",
        status="reconstructed",
        uncertain=("optimizer", "method.heads", "method.views", "method.objective.contrastive.loss.temperature"),
    )


def combined() -> Preset:
    """EqCo, smoothing, ReLIC, small views, masks and growing resolution at once. Cost 2.5.

    Masks of the foreground are by the border's colour unless given: docs/saliency.md.
    """
    large = View(size=Ramp(0.5, 1.0, until=0.6), mask_background=0.1)
    small = View(size=0.5, scale=(0.05, 0.3), seen_by="online")
    contrastive = InfoNCE(0.2, margin=EqCo(alpha=256), soft_targets=NearestSmoothing(0.1, nearest=4))
    method = Method(
        views=(large, large, small, small),
        heads=Heads(MLP(hidden=(512,), out=128)),
        target=Momentum(0.99),
        negatives=InBatch(16, views="positive"),
        objective={"contrastive": Term(1.0, contrastive), "invariance": Term(1.0, RelicInvariance(0.2))},
    )
    return Preset(method, AdamW(lr=2e-3), "smallview: five papers in one method", "adapted", ("method", "optimizer"))


PRESETS: dict[str, Callable[[], Preset]] = {
    make.__name__: make
    for make in (
        simclr,
        moco_v2,
        moco_v3,
        simo,
        byol,
        simsiam,
        barlow_twins,
        vicreg,
        dcl,
        ressl,
        lejepa,
        relic,
        relic_v2,
        light_moco,
        s3l_moco,
        s3l_simclr,
        s3l_byol,
        simclr_small_batch,
        simclr_one_patch,
        simclr_noise_only,
        combined,
    )
}


def methods() -> list[str]:
    """The names of the presets.

    Example:
        >>> methods()[:3]
        ['barlow_twins', 'byol', 'combined']
    """
    return sorted(PRESETS)


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UsageError: no method is called so.
    """
    if name not in PRESETS:
        raise UsageError(f'no method is called "{name}"{suggest(name, PRESETS)}')
    return PRESETS[name]()


def method(name: str) -> Method:
    """The method of the preset of that name."""
    return preset(name).method
