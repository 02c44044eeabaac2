"""One method of the literature, one short function: its docstring says where it comes from and what is certain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from smallview.errors import UsageError, suggest
from smallview.joint_embedding import Method, Term
from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum, Shared
from smallview.objectives import Alignment, InBatch, InfoNCE, NoNegatives, Queue
from smallview.optimizers import SGD, AdamW
from smallview.schedules import Cosine
from smallview.views.view import View


@dataclass(frozen=True)
class Preset:
    """A method with the settings its results depend on.

    encoder, batch_size, epochs: None leaves them to the defaults for the machine and the data. status says whether the settings
    are the authors' or adapted to small budgets; `uncertain` names the fields that are ours.
    """

    method: Method
    optimizer: SGD | AdamW
    source: str
    status: Literal["published", "adapted", "reconstructed"]
    uncertain: tuple[str, ...] = ()
    encoder: str | None = None
    batch_size: int | None = None
    epochs: float | None = None


def simclr() -> Preset:
    """SimCLR: two views of each picture attract, all other pictures of the batch repel; one shared network."""
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


def moco_v2() -> Preset:
    """MoCo v2: queries against a queue of keys from a momentum target."""
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
        uncertain=("optimizer", "method.target.momentum", "method.negatives.size", "method.heads.projector.hidden"),
    )


def byol() -> Preset:
    """BYOL: predict the momentum target's embedding of the other view; nothing repels."""
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
        uncertain=("optimizer", "method.target.momentum", "method.heads", "method.views.0.blur"),
    )


PRESETS: dict[str, Callable[[], Preset]] = {"simclr": simclr, "moco_v2": moco_v2, "byol": byol}


def methods() -> list[str]:
    """The names of the presets.

    Example:
        >>> methods()
        ['byol', 'moco_v2', 'simclr']
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
