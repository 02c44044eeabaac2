"""What tests of whole runs share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_server import FEW_PATCHES, Server

from smallview import beside
from smallview.networks import patches
from smallview.records import Foregrounds, Pictures
from smallview.training.launch import StopRequest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is marked `gpu` is left out, with a line, where there is no CUDA device."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds what another run of the tests, or a person, has kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLVIEW_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def small_dictionaries() -> Iterator[None]:
    """The default encoder's dictionary is found in few patches: it would be most of what a small run costs."""
    before = patches.PATCHES, patches.EVENED
    patches.PATCHES, patches.EVENED = FEW_PATCHES
    yield
    patches.PATCHES, patches.EVENED = before


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, cache_of_the_tests: None) -> Iterator[Server]:
    """One process with torch in it, whose forks run commands; one for all tests, because its start takes seconds."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch, and the caller's number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own, and one thread."""
    monkeypatch.setenv("SMALLVIEW_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fronts() -> Callable[[Foregrounds, Pictures], list[np.ndarray | None]]:
    """Gives each picture's foreground bool [H, W], None where it stays whole."""

    def unpack(found: Foregrounds, pictures: Pictures) -> list[np.ndarray | None]:
        out: list[np.ndarray | None] = []
        for i, (h, w) in enumerate(zip(pictures.heights.tolist(), pictures.widths.tolist(), strict=True)):
            bits = np.unpackbits(found.bits[found.starts[i] :][: -(-h * w // 8)], count=h * w) if found.usable[i] else None
            out.append(None if bits is None else bits.reshape(h, w).astype(bool))
        return out

    return unpack


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

        monkeypatch.setattr(beside, "StopRequest", Counted)

    return stop
