"""Labels that are looked at while training runs, and never influence it: which ones, and where their features come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from smallview.errors import DataError
from smallview.evaluation.subject import evaluation_pack
from smallview.parts import Parts
from smallview.training.loop import StepReport
from smallview.training.online import OnlineLabels, OnlineSet

OWN = "labels"


@dataclass
class Online:
    """Judges now and then: by features of the training's own views, or by a labeled set beside it."""

    parts: Parts
    judged: OnlineLabels | OnlineSet

    def step(self, report: StepReport, last: bool) -> dict[str, float]:
        """What this step's look found; empty where none was due."""
        judged = self.judged
        if isinstance(judged, OnlineLabels) and report.done.features is not None and report.done.finite:
            # of several processes, the first one has the first part of the batch
            judged.keep(report.batch.index[: len(report.done.features)], report.done.features)
        if report.step % judged.every and not last:
            return {}
        if isinstance(judged, OnlineLabels):
            return judged.look()
        parts = self.parts
        precision, device = parts.precision, parts.device
        return judged.look(parts.state.networks.online.encoder, device, precision.memory_format, precision.autocast(device))


def online_of(parts: Parts, say: Callable[[str], None]) -> Online | None:
    """What judges while this run trains, None where nothing was asked for.

    Raises:
        DataError: no labels there. UsageError: nothing there.
    """
    config, wanted = parts.config, parts.config.online
    if wanted is None:
        return None
    judged: OnlineLabels | OnlineSet
    if wanted == OWN:
        labels = parts.pack.labels
        if labels is None:
            raise DataError(
                f"online is labels and {parts.pack.name} has none; wanted class folders, (images, labels), or an .npz with "
                "labels; or name a labeled set: --online DATA"
            )
        numbers = np.asarray(labels, np.int64)
        judged = OnlineLabels(numbers, int(numbers.max()) + 1, config.batch_size)
    else:
        source, pack = evaluation_pack(wanted, parts.encoder_config, threads=config.threads)
        if pack.labels is None:
            raise DataError(f"--online {source.name} has no labels; wanted class folders, or an .npz with labels")
        numbers = np.asarray(pack.labels, np.int64)
        judged = OnlineSet(pack, numbers, int(numbers.max()) + 1, parts.encoder_config, config.batch_size, config.seed)
    say(f"online: {judged.protocol}")
    return Online(parts, judged)
