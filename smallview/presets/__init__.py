"""One method of the literature, one short function: its docstring says where it comes from, what was known, and what it costs.

Settings are for small budgets on small pictures unless the status is `published`; `uncertain` lists the fields that are this project's
own. Cost is in encoder passes per picture, see `training.cost.encoder_passes`; two views with gradient, SimCLR's, are 2.
"""

from __future__ import annotations

from collections.abc import Callable

from smallview.errors import UsageError, suggest
from smallview.joint_embedding import Method
from smallview.presets.attracting import barlow_twins, byol, lejepa, simsiam, vicreg
from smallview.presets.few_negatives import simclr_noise_only, simclr_one_patch, simclr_small_batch, simo
from smallview.presets.invariance import combined, relic, relic_v2
from smallview.presets.record import Preset as Preset
from smallview.presets.repelling import dcl, moco_v2, moco_v3, ressl, simclr
from smallview.presets.small_networks import light_moco, s3l_byol, s3l_moco, s3l_simclr

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
