"""What tests of whole runs share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from smallview import run as story
from smallview.training.launch import StopRequest


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own, and one thread."""
    monkeypatch.setenv("SMALLVIEW_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stop_after() -> Callable[[pytest.MonkeyPatch, int], None]:
    """Lets the next runs be asked to stop after so many steps."""

    def stop(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
        class Counted(StopRequest):
            seen = 0

            @property
            def requested(self) -> bool:
                self.seen += 1
                return self.seen >= steps

            @requested.setter
            def requested(self, value: bool) -> None:
                pass

        monkeypatch.setattr(story, "StopRequest", Counted)

    return stop
