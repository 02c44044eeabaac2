"""TensorBoard's files, for those who look at runs there."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallview.errors import UsageError


class TensorBoardLog:
    """A logger (see training/log.py) that writes every number of a record as a scalar.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(f"TensorBoard is not installed ({error}); pip install smallview[tensorboard]") from None
        self._folder, self._make = Path(folder), SummaryWriter
        self._writer: Any = None

    def begin(self, settings: Mapping[str, Any], step: int) -> None:
        """Open its files; points after `step`, of a part of the run that is done again, go."""
        # also at step 0: a run that was killed before its first checkpoint has left points
        self._writer = self._make(str(self._folder), purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """One point for each number."""
        for name, value in record.items():
            if name != "step" and isinstance(value, numbers.Real) and not isinstance(value, bool):
                self._writer.add_scalar(name, float(value), int(record["step"]))
        self._writer.flush()

    def end(self, summary: Mapping[str, Any]) -> None:
        """Close its files."""
        self._writer.close()
