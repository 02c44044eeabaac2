"""What the data tests share: a pattern whose orientation shows, the bag of odd pictures, a cache folder of each test's own."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 30), (30, 30, 220), (240, 240, 240)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SMALLVIEW_CACHE", str(folder))
    return folder


@pytest.fixture
def pattern() -> np.ndarray:
    """48 wide, 32 high: red, green / blue, near-white, and a dark bar near the top."""
    image = np.empty((32, 48, 3), np.uint8)
    image[:16, :24], image[:16, 24:], image[16:, :24], image[16:, 24:] = RED, GREEN, BLUE, WHITE
    image[4:6, 8:40] = 20
    return image


@pytest.fixture
def has_quadrants() -> Callable[..., None]:
    def check(image: np.ndarray, tolerance: int = 25) -> None:
        assert image.dtype == np.uint8
        height, width = image.shape[:2]
        for (y, x), colour in zip(
            [(0.4, 0.08), (0.4, 0.92), (0.85, 0.08), (0.85, 0.92)], (RED, GREEN, BLUE, WHITE), strict=True
        ):
            got = image[int(y * height), int(x * width)].astype(int)
            assert np.abs(got - colour).max() <= tolerance, f"{got} at {y:.0%}, {x:.0%}; wanted {colour}"
        assert image[height // 8 : height // 8 + 2, width // 4 : 3 * width // 4].mean() < 110, (
            "the dark bar is not near the top"
        )

    return check


@pytest.fixture
def encode() -> Callable[..., bytes]:
    def run(image: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        file = io.BytesIO()
        picture.save(file, format, **options)
        return file.getvalue()

    return run


@pytest.fixture
def photos(tmp_path: Path, encode: Callable[..., bytes]) -> Callable[..., Path]:
    """A folder of small noise pictures under these names."""

    def make(*names: str, root: str = "photos", sides: tuple[int, int] = (20, 30)) -> Path:
        folder = tmp_path / root
        folder.mkdir(exist_ok=True)
        for k, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(k).integers(0, 256, (sides[0] + k % 7, sides[1], 3), np.uint8)
            path.write_bytes(encode(noise, "JPEG" if name.endswith("jpg") else "PNG"))
        return folder

    return make


def _bag() -> Path | None:
    root = os.environ.get("SMALLVIEW_DATA")
    folder = Path(root) / "odd-images" if root else None
    return folder if folder is not None and (folder / "manifest.csv").is_file() else None


@pytest.fixture
def bag() -> Iterator[Path]:
    folder = _bag()
    if folder is None:
        pytest.skip("SMALLVIEW_DATA is unset or holds no odd-images/: the bag of odd pictures is not tested")
    yield folder / "files"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "manifest_line" not in metafunc.fixturenames:
        return
    folder = _bag()
    if folder is None:
        reason = "SMALLVIEW_DATA is unset or holds no odd-images/"
        metafunc.parametrize("manifest_line", [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="no bag")])
        return
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))[1:]
    metafunc.parametrize("manifest_line", [pytest.param(line, id=line[0].encode("unicode_escape").decode()) for line in lines])
