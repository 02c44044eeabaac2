"""What a newer version wrote is refused by its number, never misread or called damaged; what an earlier one wrote is read."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smallview as sv
from smallview import ledger
from smallview.continuing import stored_config
from smallview.data.packing import open_pack, read_pack
from smallview.data.sources import open_source
from smallview.errors import SmallviewError, UsageError
from smallview.files import write_text
from smallview.resolving import read_config_file
from smallview.training import checkpoint, manifest

PICTURES = np.random.default_rng(0).integers(0, 255, (32, 16, 16, 3), np.uint8)


@pytest.fixture
def run(tmp_path: Path, one_thread: None) -> Path:
    return sv.pretrain(PICTURES, out=tmp_path / "run", size=16, batch_size=16, epochs=1, threads=1, quiet=True).path


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image

    monkeypatch.setenv("SMALLVIEW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for i, picture in enumerate(PICTURES[:4]):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i}.png")
    open_pack(open_source(tmp_path / "photos"), short_side=16)
    (meta,) = (tmp_path / "cache" / "packs").rglob("meta.json")
    return meta.parent


def raised(path: Path, key: str = "format_version", **more: Any) -> None:
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, key: told[key] + 1, **more}))


@pytest.mark.parametrize("more", [{}, {"patches": 4}], ids=["the same keys", "a new key"])
def test_a_newer_encoder_is_refused_by_its_number(run: Path, more: dict[str, int]) -> None:
    raised(run / "encoder" / "config.json", **more)
    with pytest.raises(
        UsageError, match="encoder has format_version 2; this version reads up to 1: use the smallview that wrote it"
    ):
        sv.load(run)


@pytest.mark.parametrize("more", [{}, {"energy": 4}], ids=["the same keys", "a new key"])
def test_a_newer_line_of_a_ledger_is_refused_by_its_number(tmp_path: Path, more: dict[str, int]) -> None:
    one = asdict(replace(ledger.read()[0], format_version=2))
    (tmp_path / "ledger.jsonl").write_text(json.dumps(one | more) + "\n")
    with pytest.raises(UsageError, match=r"line 1 of the ledger .* has format_version 2; this version reads up to 1"):
        ledger.read(tmp_path / "ledger.jsonl")


def test_newer_settings_are_refused_by_their_number(run: Path) -> None:
    path = run / "run.toml"
    path.write_text(path.read_text().replace("format_version = 2", "format_version = 3"))
    with pytest.raises(UsageError, match="has format_version 3; this version goes on with 2"):
        stored_config(run)
    with pytest.raises(UsageError, match="has format_version 3; this version reads 1 to 2"):
        read_config_file(str(path))


def test_settings_of_the_first_format_are_read_as_a_file_of_settings_but_not_gone_on_with(tmp_path: Path) -> None:
    write_text(tmp_path / "run.toml", "format_version = 1\nseed = 3\n")
    assert read_config_file(str(tmp_path / "run.toml"))["seed"] == 3
    with pytest.raises(UsageError, match="an earlier version of smallview, whose views were others"):
        stored_config(tmp_path)


def test_a_newer_checkpoint_is_passed_over_with_the_reason(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "FORMAT_VERSION", 0)  # what was written is newer than this reads
    with pytest.raises(SmallviewError, match="written by a newer smallview"):
        checkpoint.load_latest(run / "checkpoints")


def test_a_newer_pack_is_refused_without_its_source_and_packed_anew_with_it(pack: Path) -> None:
    sound = (pack / "meta.json").read_bytes()
    for name in ("meta.json", "meta.copy.json"):
        raised(pack / name, "format")
    with pytest.raises(UsageError, match=r"the pack in .* has format 3; this version reads up to 2"):
        read_pack(pack)
    open_pack(open_source(pack.parents[3] / "photos"), short_side=16)
    assert (pack / "meta.json").read_bytes() == sound


def test_the_formats_that_the_page_tells_are_those_of_the_code(run: Path) -> None:
    from smallview.config import FORMAT_VERSION as settings
    from smallview.data.pack_files import FORMAT as packs
    from smallview.networks.encoders import FORMAT_VERSION as encoders
    from smallview.output.targets import FORMAT_VERSION as exports

    page = (Path(__file__).parents[1] / "docs" / "stability.md").read_text()
    told = {name: int(number) for name, number in re.findall(r"^\| `([\w./]+)`[^|]* \| (\d) \|", page, re.MULTILINE)}
    assert told == {
        "run.toml": settings,
        "encoder/config.json": encoders,
        "checkpoints/": manifest.FORMAT_VERSION,
        "meta.json": packs,
        "smallview/results/ledger.jsonl": ledger.FORMAT_VERSION,
        "config.json": exports,
    }
