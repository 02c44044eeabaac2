"""Exports: opened by someone without this library they give the same features, and what is not equal is not kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import smallview as sv
from smallview.errors import SmallviewError, UsageError
from smallview.networks.encoders import EncoderConfig, build_encoder, describe, save_encoder
from smallview.output.parity import Parity, compare, made_pictures
from smallview.output.targets import TARGETS, Handed, check_holds

MEAN, STD = (0.52, 0.47, 0.41), (0.21, 0.24, 0.27)
ONNX = all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))

pytestmark = pytest.mark.usefixtures("apart")


def built(name: str, size: int = 32, channels: int = 3, **options: object) -> tuple[nn.Module, EncoderConfig]:
    """An encoder whose every tensor says something, statistics too."""
    net, config = build_encoder(name, size=size, in_channels=channels, **options)
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            for tensor in (module.weight, module.bias) if module.affine else ():
                nn.init.uniform_(tensor, *((0.5, 1.5) if tensor is module.weight else (-0.2, 0.2)))
    return net.eval(), replace(config, mean=MEAN[:channels], std=STD[:channels])


def saved(folder: Path, name: str, **options: object) -> Path:
    net, config = built(name, **options)
    save_encoder(net, config, folder / "encoder")
    return folder / "encoder"


STRANGER = """
import json, os, re, sys
import numpy as np

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "smallview":
            raise ImportError("smallview is not here")

sys.meta_path.insert(0, Absent())
sys.path.insert(0, "")
told = {}
for folder in sys.argv[1:]:
    os.chdir(folder)
    space = {}
    for block in re.findall(r"```python\\n(.*?)```", open("README.md").read(), re.S):
        exec(block, space)
    told[folder] = np.asarray(space["features"]).tolist()
    if "backbone" in space:
        told[folder + " levels"] = {k: list(v.shape) for k, v in space["backbone"](space["torch"].zeros(1, 3, 64, 64)).items()}
assert "smallview" not in sys.modules
print(json.dumps(told))
"""


def test_the_code_on_every_card_runs_without_this_library(tmp_path: Path) -> None:
    own = saved(tmp_path / "own", "dense_small:8-16-24", size=48)
    resnet = saved(tmp_path / "resnet", "resnet18", size=48, stem="standard")
    made = [(own, "hub"), (own, "torch-export"), (resnet, "timm"), (resnet, "torchvision"), (resnet, "hub")]
    made += [(own, "onnx")] * ONNX
    # large, full of detail and lying on its side: made smaller otherwise, or not turned, it gives other features
    y, x = np.mgrid[:360, :480]
    waves = np.stack([np.sin(x / 7) * np.sin(y / 11), np.sin((x + y) / 5), np.sin((x - 2 * y) / 9)], 2)
    picture = np.uint8(128 + 60 * waves + np.random.default_rng(0).normal(0, 40, waves.shape).clip(-60, 60))
    turned = Image.Exif()
    turned[274] = 6
    folders = []
    for number, (encoder, to) in enumerate(made):
        folders.append(tmp_path / f"{number}-{to}")
        sv.export(encoder, to, folders[-1], pictures=picture_set(), threads=1)
        Image.fromarray(picture).save(folders[-1] / "picture.jpg", quality=100, subsampling=0, exif=turned)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *map(str, folders)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for (encoder, to), folder in zip(made, folders, strict=True):
        ours = sv.embed(encoder, [folder / "picture.jpg"], threads=1)
        theirs = np.array(told[str(folder)])
        assert theirs.shape == ours.shape
        apart = np.abs(theirs - ours).max() / np.abs(ours).max()
        assert apart < 0.02, (to, apart)
    assert list(told[f"{folders[3]} levels"]) == ["0", "1", "2", "3", "pool"]


def picture_set() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (70, 60, 70, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenetv3_small_050", {"size": 64, "stem": "standard", "channels": 1}),
        ("vit_tiny_patch16_224", {"size": 30}),
        ("resnet10t", {"size": 48, "stem": "standard"}),
    ],
)
def test_plain_timm_opens_what_it_can_build(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    import timm

    encoder = saved(tmp_path, name, **options)
    out = tmp_path / "a #1 folder"
    made = sv.export(encoder, "timm", out)
    assert made.files == ("README.md", "config.json", "model.safetensors")
    assert made.parity.holds and made.parity.pictures == 64
    net = timm.create_model(f"local-dir:{out}", pretrained=True)
    want = sv.load(encoder).state_dict()
    assert net.num_classes == 0 and net.num_features == json.loads((out / "config.json").read_text())["num_features"]
    assert all(torch.equal(value, want[key]) for key, value in net.state_dict().items()) and len(net.state_dict()) == len(want)
    data = timm.data.resolve_data_config({}, model=net)
    channels = options.get("channels", 3)
    assert tuple(data["input_size"]) == (channels, options["size"], options["size"]) and tuple(data["mean"]) == MEAN[:channels]
    # a head for a task of one's own
    assert timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=7).num_classes == 7


@pytest.mark.parametrize(
    ("name", "options", "able"),
    [
        ("dense_small", {}, "onnx torch-export hub"),
        ("dense_small:8-16-32", {"depth": 2}, "onnx torch-export hub"),
        ("patches:8-12-16", {}, "onnx torch-export hub"),
        ("resnet18", {"stem": "standard"}, "timm torchvision onnx torch-export hub"),
        ("resnet18", {"stem": "standard", "channels": 1}, "timm onnx torch-export hub"),
        ("resnet18", {}, "onnx torch-export"),
        ("resnet18", {"stem": "standard", "depth": 3}, "onnx torch-export"),
        ("mobilenetv3_small_050", {"stem": "standard"}, "timm onnx torch-export hub"),
        ("mobilenetv3_small_050", {}, "onnx torch-export"),
        ("vit_tiny_patch16_224", {}, "timm onnx torch-export hub"),
    ],
)
def test_what_a_target_cannot_hold_is_told_with_those_that_can(name: str, options: dict[str, object], able: str) -> None:
    handed = Handed(*built(name, **options), 1.0)
    for to in TARGETS:
        if to in able.split():
            check_holds(to, handed)
        else:
            with pytest.raises(UsageError, match=f"--to {to} cannot hold {name}.*these can: {', '.join(able.split())}$"):
                check_holds(to, handed)


def test_a_truncated_encoder_of_our_own_keeps_its_strides(tmp_path: Path) -> None:
    made = sv.export(saved(tmp_path, "dense_small:8-16-32-64", depth=2, channels=1), "hub", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (told["widths"], told["strides"], told["in_channels"]) == ([8, 16], [1, 2], 1) and made.parity.difference < 1e-6


def test_a_module_of_ones_own_is_passed_and_traced(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    save_encoder(net, replace(describe(net, in_channels=3, size=16), mean=MEAN, std=STD), tmp_path / "encoder")
    with pytest.raises(UsageError, match="module of your own"):
        sv.export(tmp_path, "torch-export", tmp_path / "out")
    with pytest.raises(UsageError, match="timm cannot hold Sequential, a module of your own; these can: onnx, torch-export"):
        sv.export(tmp_path, "timm", tmp_path / "out", into=net)
    assert not (tmp_path / "out").exists()
    made = sv.export(tmp_path, "torch-export", tmp_path / "out", into=net, input="uint8")
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    pictures = torch.from_numpy(made_pictures(16, MEAN, STD)[:3].copy())
    images = (pictures.permute(0, 3, 1, 2) / 255.0 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(program(pictures), net(images), atol=1e-6)
    assert made.files == ("README.md", "config.json", "model.pt2")
    assert str(Path(sv.__file__).parent).encode() not in (tmp_path / "out" / "model.pt2").read_bytes()


def branching(images: torch.Tensor) -> torch.Tensor:
    return images.mean((2, 3)) * (2.0 if float(images.sum()) > 0.0 else 1.0)


def test_what_cannot_be_traced_is_one_line(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return branching(images)

    net = Branching()
    save_encoder(net, replace(describe(net, in_channels=3, size=8), mean=MEAN, std=STD), tmp_path / "encoder")
    with pytest.raises(UsageError, match="torch cannot trace Branching") as told:
        sv.export(tmp_path, "torch-export", tmp_path / "out", into=net)
    assert "\n" not in str(told.value) and not (tmp_path / "out").exists()


def with_another_mean(handed: Handed) -> Handed:
    return replace(handed, config=replace(handed.config, mean=(0.5, 0.47, 0.41)))


def with_two_layers_swapped(handed: Handed) -> Handed:
    net, _ = built("dense_small:8-8-8")
    net.load_state_dict(handed.net.state_dict())
    net.body[3], net.body[6] = net.body[6], net.body[3]
    return replace(handed, net=net)


@pytest.mark.parametrize("spoil", [with_another_mean, with_two_layers_swapped])
def test_what_is_not_equal_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Handed], Handed]
) -> None:
    encoder, hub = saved(tmp_path, "dense_small:8-8-8"), TARGETS["hub"]
    sv.export(encoder, "hub", tmp_path / "earlier")
    before = (tmp_path / "earlier" / "README.md").read_bytes()
    monkeypatch.setitem(TARGETS, "hub", replace(hub, write=lambda handed, folder: hub.write(spoil(handed), folder)))
    for out in ("new/out", "earlier"):
        with pytest.raises(SmallviewError, match="the export to hub is not equal, and was not kept: 64 pictures"):
            sv.export(encoder, "hub", tmp_path / out)
    assert (tmp_path / "earlier" / "README.md").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier", "encoder"]


def test_comparison_by_hand() -> None:
    features = np.eye(4, dtype=np.float32) + np.float32(0.1)
    features[1] = features[0] + np.float32(1e-5)  # nearest to each other
    pictures = np.zeros((4, 2, 2, 3), np.uint8)
    pictures[:, 0, 0, 0] = np.arange(4)

    def of(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        return lambda shown: rows[shown[:, 0, 0, 0]]

    assert compare(of(features), of(features), pictures, "") == Parity(4, "", 0.0, pytest.approx(0.5568, abs=1e-3), 0)
    moved = features.copy()
    moved[2, 0] += np.float32(3e-5)
    assert compare(of(features), of(moved), pictures, "").holds
    moved[2, 0] += np.float32(1e-4)
    assert not compare(of(features), of(moved), pictures, "").holds
    for spoiled in (np.full_like(features, np.nan), features[:, :3]):
        assert not compare(of(features), of(spoiled), pictures, "").holds
    # every feature is nearly as it was, and yet another neighbour is the nearest
    close = np.array([[1, 0, 0], [1, 0.01, 0], [1, 0, 0.0101]], np.float32)
    other = close.copy()
    other[1, 1], other[2, 2] = 0.01006, 0.01004
    found = compare(of(close), of(other), pictures[:3], "")
    assert found.difference < 1e-4 * found.scale * 2 and found.moved == 1 and not found.holds


def test_made_pictures_are_as_the_trained_ones(tmp_path: Path) -> None:
    made = made_pictures(16, MEAN, STD)
    assert made.shape == (64, 16, 16, 3) and np.array_equal(made, made_pictures(16, MEAN, STD))
    assert np.abs(made.mean((0, 1, 2)) / 255 - MEAN).max() < 0.1 and len(np.unique(made.reshape(64, -1), axis=0)) == 64
