"""ONNX files: run by onnxruntime with a batch of any length, fed as their metadata says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import smallview as sv
from smallview.networks.encoders import build_encoder, save_encoder
from smallview.output.parity import made_pictures, normalised

onnx = pytest.importorskip("onnx", reason="needs the extra: pip install 'smallview[onnx]'")
runtime = pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'smallview[onnx]'")
pytest.importorskip("onnxscript", reason="needs the extra: pip install 'smallview[onnx]'")

MEAN, STD = (0.52, 0.47, 0.41), (0.21, 0.24, 0.27)
pytestmark = pytest.mark.usefixtures("apart")


def saved(folder: Path, name: str, size: int, **options: object) -> Path:
    net, config = build_encoder(name, size=size, **options)
    save_encoder(net, replace(config, mean=MEAN, std=STD), folder / "encoder")
    return folder / "encoder"


@pytest.mark.parametrize(
    ("name", "size", "options", "input"),
    [
        ("dense_small:8-16", 16, {}, "normalised"),
        ("dense_small:8-16", 16, {}, "float"),
        ("dense_small:8-16", 16, {}, "uint8"),
        ("resnet18", 32, {"depth": 2}, "normalised"),  # the small stem, truncated
    ],
)
def test_onnx_gives_the_same_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int, options: dict[str, object], input: str
) -> None:
    encoder = saved(tmp_path, name, size, **options)
    made = sv.export(encoder, "onnx", tmp_path / "out", input=input)
    assert made.parity.relative < 1e-5 and made.files == ("README.md", "config.json", "model.onnx")
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["mean"]) == list(MEAN) and json.loads(said["std"]) == list(STD)
    assert (said["size"], said["in_channels"], said["input"]) == (str(size), "3", input)
    assert said["resize"].startswith("the centre square, the whole of the short side, resized to")
    (taken,) = session.get_inputs()
    assert taken.name == "images" and taken.shape[0] == "batch" and session.get_outputs()[0].shape[0] == "batch"
    pictures = made_pictures(size, MEAN, STD)[:7]
    fed = {
        "normalised": normalised(pictures, MEAN, STD).numpy(),
        "float": (pictures.transpose(0, 3, 1, 2) / 255).astype(np.float32),
        "uint8": pictures,
    }
    (features,) = session.run(None, {"images": fed[input]})
    with torch.no_grad():
        wanted = sv.load(encoder)(normalised(pictures, MEAN, STD)).numpy()
    assert np.abs(features - wanted).max() < 1e-5 * max(1.0, float(np.abs(wanted).max()))
    picture = np.kron(pictures[0], np.ones((3, 4, 1), np.uint8))
    Image.fromarray(picture).save(tmp_path / "out" / "picture.jpg", quality=100, subsampling=0)
    monkeypatch.chdir(tmp_path / "out")
    space: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S)[0], space)
    fitted = np.array(ImageOps.fit(Image.open("picture.jpg"), (size, size), Image.Resampling.BILINEAR))
    with torch.no_grad():
        ours = sv.load(encoder)(normalised(fitted[None], MEAN, STD)).numpy()
    assert space["features"].shape == ours.shape and np.abs(space["features"] - ours).max() < 1e-4 * np.abs(ours).max()
    assert str(Path(sv.__file__).parent).encode() not in (tmp_path / "out" / "model.onnx").read_bytes()
