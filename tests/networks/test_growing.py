"""Encoders that grow: truncated, regrown, widened, deepened and frozen, each against what it must leave as it is."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smallview.errors import UsageError
from smallview.networks.dense_small import DenseSmall
from smallview.networks.encoders import build_encoder, load_encoder, save_encoder
from smallview.networks.freezing import freeze, unfreeze
from smallview.networks.growing import grow, split_inputs
from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum, Networks, Shared
from smallview.networks.stages import pooled_stages, stage_modules
from smallview.networks.truncating import count_stages, regrow, truncate
from smallview.settle import check_encoder
from smallview.training.cost import forward_macs

# name: stages, depth kept, features there, what is fresh when regrown
CUT: dict[str, tuple[int, int, int, tuple[str, ...]]] = {
    "dense_small": (5, 4, 256, ("body.12.", "body.13.")),
    "dense_small:16-32-64": (3, 1, 16, ("body.3.", "body.4.", "body.6.", "body.7.")),
    "resnet18": (5, 4, 256, ("layer4.",)),
    "resnet50": (5, 3, 512, ("layer3.", "layer4.")),
    "mobilenetv3_small_050": (5, 4, 24, ("blocks.4.", "blocks.5.", "conv_head.")),
    "mobilenetv3_large_100": (5, 4, 112, ("blocks.5.", "blocks.6.", "conv_head.")),
    "efficientnet_b0": (5, 2, 24, ("blocks.2.", "blocks.3.", "blocks.4.", "blocks.5.", "blocks.6.", "conv_head.", "bn2.")),
    "convnext_atto": (4, 3, 160, ("stages.3.", "head.norm.")),
    "regnetx_002": (5, 4, 152, ("s4.",)),
    "vit_tiny_patch16_224": (12, 6, 192, tuple(f"blocks.{i}." for i in range(6, 12))),
}
SIZE = 32


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def lived(net: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with no value that a fresh network has: scales that start at zero would hide what stands behind them."""
    draws = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=draws))
        elif value.is_floating_point():
            value.add_(0.1 * (1.0 + value.abs().mean()) * torch.randn(value.shape, generator=draws))
        else:
            value.fill_(7)
    return net.eval()


def built(name: str, seed: int = 0, **more: Any) -> nn.Module:
    return build_encoder(name, size=SIZE, seed=seed, **more)[0]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.mark.parametrize("name", list(CUT))
def test_a_truncated_encoder_is_the_first_part_of_the_whole(name: str) -> None:
    stages, depth, features, fresh = CUT[name]
    net = lived(built(name))
    before = copy.deepcopy(net.state_dict())
    cut: Any = truncate(net, depth)
    assert (count_stages(net), count_stages(cut)) == (stages, depth) == (len(stage_modules(net)), len(stage_modules(cut)))
    kept = {k: v for k, v in before.items() if not k.startswith(fresh)}
    assert equal(cut.state_dict(), kept) and equal(net.state_dict(), before)
    assert sum(p.numel() for p in cut.parameters()) == sum(p.numel() for k, p in net.named_parameters() if k in kept)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        if name.startswith("vit"):
            seen: list[Tensor] = []
            hook = net.blocks[depth - 1].register_forward_hook(lambda _, __, out: seen.append(out))
            net(images)
            hook.remove()
            expected = net.norm(seen[0])[:, 0]
        else:
            expected = list(pooled_stages(net)(images).values())[depth - 1]
        torch.testing.assert_close(cut(images), expected, atol=1e-5, rtol=1e-4)
        assert {cut(torch.randn(2, 3, side, side)).shape for side in (SIZE, 24)} == {(2, features)}
    assert cut.num_features == features and not cut.training


@pytest.mark.parametrize("name", list(CUT))
def test_built_truncated_saved_and_loaded(name: str, tmp_path: Path) -> None:
    stages, depth, features, _ = CUT[name]
    net, config = build_encoder(name, size=SIZE, seed=3, depth=depth)
    whole, described = build_encoder(name, size=SIZE, seed=3, depth=stages)
    assert (config.depth, config.features, described.depth, config.stem) == (depth, features, None, described.stem)
    assert equal(net.state_dict(), truncate(whole, depth).state_dict())
    save_encoder(lived(net), config, tmp_path)
    loaded, again = load_encoder(tmp_path)
    assert again == config and equal(loaded.state_dict(), net.state_dict())


def test_configs_of_whole_encoders_stay_as_they_were(tmp_path: Path) -> None:
    net, config = build_encoder("dense_small")
    save_encoder(net, config, tmp_path)
    assert "depth" not in json.loads((tmp_path / "config.json").read_text())
    assert load_encoder(tmp_path)[1] == config


@pytest.mark.parametrize("name", list(CUT))
def test_regrown_to_the_bit(name: str) -> None:
    _, depth, _, fresh = CUT[name]
    small, full = lived(built(name, depth=depth)), built(name, seed=1)
    before, kept = copy.deepcopy(full.state_dict()), copy.deepcopy(small.state_dict())
    grown = regrow(small, full)
    after = full.state_dict()
    assert grown.copied == list(kept) and grown.fresh == [k for k in after if k.startswith(fresh)]
    assert equal({k: after[k] for k in grown.copied}, kept)
    assert equal({k: after[k] for k in grown.fresh}, {k: before[k] for k in grown.fresh})
    assert sorted(grown.copied + grown.fresh) == sorted(after)


def test_regrown_by_one_stage_and_by_none() -> None:
    three, four = lived(built("resnet18", depth=3)), built("resnet18", depth=4, seed=1)
    assert {k.split(".")[0] for k in regrow(three, four).fresh} == {"layer3"}
    assert regrow(four, built("resnet18", depth=4)).fresh == []


@pytest.mark.parametrize(
    ("small", "full", "words"),
    [
        (("resnet18", {"depth": 4}), ("resnet34", {}), "layer1.2.conv1.weight is in one of them only"),
        (("resnet34", {"depth": 4}), ("resnet18", {}), "layer1.2.conv1.weight"),
        (("resnet18", {"depth": 4, "stem": "standard"}), ("resnet18", {"stem": "small"}), "[64, 3, 7, 7] in the one"),
        # one set of shapes, other strides
        (("dense_small", {"depth": 4, "stem": "standard"}), ("dense_small", {"stem": "small"}), "stride=(2, 2)"),
        (("mobilenetv3_small_050", {"depth": 4, "stem": "standard"}), ("mobilenetv3_small_050", {"stem": "small"}), "stride"),
        (("dense_small:16-32-64", {}), ("dense_small", {}), "[16, 3, 3, 3] in the one and float32 [32, 3, 3, 3] in the other"),
        (("resnet18", {}), ("resnet18", {"depth": 4}), "5 stages against 4"),
        (("resnet18", {"depth": 4, "in_channels": 1}), ("resnet18", {}), "[64, 1, 3, 3]"),
        (("resnet18", {"depth": 4}), ("dense_small", {}), "resnet18 is not dense_small:32-64-128-256-512"),
    ],
)
def test_what_is_no_truncation_is_refused(small: Any, full: Any, words: str) -> None:
    one, other = built(small[0], **small[1]), built(full[0], seed=1, **full[1])
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(UsageError) as caught:
        regrow(one, other)
    assert words in str(caught.value) and "is not" in str(caught.value) and "\n" not in str(caught.value)
    assert equal(other.state_dict(), before)
    with pytest.raises(UsageError, match="is not"):
        regrow(built("dense_small", depth=4).double(), built("dense_small"))


@pytest.mark.parametrize("depth", [0, -1, 6])
@pytest.mark.parametrize("name", ["dense_small", "resnet18", "mobilenetv3_small_050"])
def test_depths_that_cannot_be_are_refused(name: str, depth: int) -> None:
    with pytest.raises(UsageError, match=rf"depth is {depth} and {name}\S* has 5 stages; wanted 1 to 5"):
        build_encoder(name, size=SIZE, depth=depth)


def test_encoders_without_stages_are_refused_by_name() -> None:
    for refused in (count_stages, lambda net: truncate(net, 1), lambda net: regrow(net, net)):
        with pytest.raises(UsageError, match="Sequential has no stages"):
            refused(nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(UsageError, match="efficientformer_l1"):
        build_encoder("efficientformer_l1", size=224, depth=3)


@pytest.mark.parametrize(
    ("name", "whole", "parameters", "features"), [("resnet50", 23.508, 8.543, 1024), ("resnet18", 11.177, 2.783, 256)]
)
def test_sizes_and_costs_without_conv5(name: str, whole: float, parameters: float, features: int) -> None:
    net, _ = build_encoder(name, size=224, stem="standard")
    cut, config = build_encoder(name, size=224, stem="standard", depth=4)
    assert config.features == features
    counted = [sum(p.numel() for p in each.parameters()) / 1e6 for each in (net, cut)]
    assert [round(n, 3) for n in counted] == [whole, parameters]
    macs = {
        (each, side): forward_macs(module, 3, side) for each, module in (("net", net), ("cut", cut)) for side in (224, 112, 56)
    }
    shares = {k: round(n / macs["net", 224], 3) for k, n in macs.items()}
    if name == "resnet50":
        assert shares == {("net", 224): 1, ("net", 112): 0.263, ("net", 56): 0.073} | {
            ("cut", 224): 0.802,
            ("cut", 112): 0.201,
            ("cut", 56): 0.056,
        }
    else:
        assert shares["cut", 224] == pytest.approx(0.773, abs=0.001)
        with torch.no_grad():
            assert {cut.eval()(torch.zeros(1, 3, side, side)).shape for side in (56, 112, 224)} == {(1, features)}


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("dense_small:8-16", [1, 2]),
        ("dense_small:8-16-32-8", [1, 2, 2, 2]),
        ("dense_small:8-16-32-64-64-8", [1, 2, 2, 2, 1, 1]),
        ("dense_small", [1, 2, 2, 2, 1]),
    ],
)
def test_names_that_say_widths(name: str, strides: list[int], tmp_path: Path) -> None:
    net, config = build_encoder(name, size=SIZE, stem="small")
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    widths = [32, 64, 128, 256, 512] if ":" not in name else [int(w) for w in name.split(":")[1].split("-")]
    assert [c.out_channels for c in convs] == widths and [c.stride[0] for c in convs] == strides
    assert config.architecture == name and config.features == widths[-1]
    standard, _ = build_encoder(name, size=64, stem="standard")
    assert next(m for m in standard.modules() if isinstance(m, nn.Conv2d)).stride == (2, 2)
    check_encoder(name)
    save_encoder(lived(net), config, tmp_path)
    loaded, again = load_encoder(tmp_path)
    assert again == config and equal(loaded.state_dict(), net.state_dict())


def test_widths_that_are_the_defaults_give_the_same_weights() -> None:
    assert equal(built("dense_small").state_dict(), built("dense_small:32-64-128-256-512").state_dict())


@pytest.mark.parametrize(
    "said", ["", "48", "48-", "0-8", "8-x", "8--8", "8,16", "-8-8", "8-99999", "08-16", "٣-٣", "-".join(["8"] * 17), "8- 8"]
)
def test_widths_that_cannot_be_are_refused(said: str) -> None:
    for refused in (check_encoder, build_encoder):
        with pytest.raises(UsageError, match=r"wanted 2 to 16 widths from 1 to 4096, as in dense_small:48-96-192-512"):
            refused(f"dense_small:{said}")


# old, new, whether training mode keeps the function as well
GROWTHS = [
    ("dense_small:4-6-8-10", "dense_small:4-6-8-10", True),
    ("dense_small:4-6-8-10", "dense_small:7-6-20-31", True),
    ("dense_small:4-8", "dense_small:12-9", True),
    ("dense_small:4-6-8-10", "dense_small:4-6-8-10-10-10", False),
    ("dense_small:4-6-8-10-12", "dense_small:5-7-9-10-11-30-31", False),
    ("resnet18", "resnet34", True),
    ("resnet26", "resnet50", True),
    ("seresnet18", "seresnet34", True),
]


@pytest.mark.parametrize(
    ("old", "new", "in_training", "dtype"),
    [(*growth, torch.float64) for growth in GROWTHS] + [(*growth, torch.float32) for growth in GROWTHS[:6]],
)
def test_growth_preserves_the_function(old: str, new: str, in_training: bool, dtype: torch.dtype) -> None:
    side = SIZE if old.startswith("dense") else 16
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    a, b = (built(name, seed=seed, stem="small").to(dtype) for seed, name in enumerate((old, new)))
    if old.startswith("dense"):
        lived(a)
    else:
        torch.manual_seed(0)
        for block in (m for m in a.modules() if hasattr(m, "conv1") and m is not a):
            nn.init.uniform_(getattr(block, "bn3", block.bn2).weight, 0.1, 0.4)
        a.train()(torch.randn(4, 3, side, side, dtype=dtype))
    kept = copy.deepcopy(a.state_dict())
    mapping = grow(a, lived(b), seed=5)
    assert equal(a.state_dict(), kept) and mapping.dtype == torch.int64
    assert sorted(set(mapping.tolist())) == list(range(a.num_features)) and len(mapping) == b.num_features
    head = nn.Sequential(nn.Linear(a.num_features, 9), nn.ReLU(), nn.Linear(9, 3)).to(dtype)
    wide = nn.Sequential(split_inputs(head[0], mapping, seed=5), *head[1:])
    images = torch.randn(3, 3, side, side, dtype=dtype)

    def far(x: Tensor, y: Tensor) -> float:
        return float((x - y).abs().max()) / max(1.0, float(y.abs().max()))

    with torch.no_grad():
        a.eval(), b.eval()
        assert float(a(images).std()) > 0.01
        assert far(b(images), a(images)[:, mapping]) <= tolerance
        assert far(wide(b(images)), head(a(images))) <= tolerance
        a.train(), b.train()
        # batches whose values hardly differ in some channel enlarge the rounding
        assert (far(b(images), a(images)[:, mapping]) <= 100 * tolerance) == in_training


@pytest.mark.parametrize(
    ("old", "new", "inserted", "features"),
    [
        ("4-6-8-10-12", "4-6-8-10-12-12", 5, 12),
        ("4-6-8-10-12", "4-6-8-10-10-12", 4, 12),
        ("4-6-8-10-12-6", "4-6-8-10-12-12-12", 5, 6),
    ],
)
def test_convolutions_are_inserted_where_least_is_widened(old: str, new: str, inserted: int, features: int) -> None:
    a, b = lived(built(f"dense_small:{old}")), built(f"dense_small:{new}", seed=1)
    mapping = grow(a, b)
    kernels = [m.weight for m in b.modules() if isinstance(m, nn.Conv2d)]
    identities = [i for i, k in enumerate(kernels) if torch.equal(k, nn.init.dirac_(torch.empty_like(k)))]
    assert identities == [inserted] and torch.equal(mapping[:features], torch.arange(features))
    assert int(b.body[1].num_batches_tracked) == 7


def test_what_an_inserted_convolution_changes_in_training_mode() -> None:
    """It is close to the identity by the statistics of a batch too; with mean 0 and variance 1 it would not be."""
    old, new = lived(built("dense_small:16-32-32-64")), built("dense_small:16-32-32-64-64")
    old.train()
    images = torch.randn(64, 3, SIZE, SIZE)
    for _ in range(60):
        old(images)
    grow(old, new)
    plain = copy.deepcopy(new)
    norm = plain.body[13]
    norm.running_mean.zero_(), norm.running_var.fill_(1.0)
    nn.init.constant_(norm.weight, (1.0 + norm.eps) ** 0.5), nn.init.zeros_(norm.bias)
    with torch.no_grad():
        for net in (new, plain):
            torch.testing.assert_close(net.eval()(images), old.eval()(images), atol=1e-5, rtol=1e-5)
        far = [float((net.train()(images) - old.train()(images)).norm() / old(images).norm()) for net in (new, plain)]
    assert far[0] < 0.25 * far[1]


def test_growth_depends_on_the_seed_alone_and_leaves_other_draws() -> None:
    old = lived(built("dense_small:4-6-8-10"))
    news = [built("dense_small:9-9-9-40", seed=i) for i in range(3)]
    state = torch.get_rng_state()
    maps = [grow(old, news[0], 1), grow(old, news[1], 1), grow(old, news[2], 2)]
    layers = [split_inputs(nn.Linear(10, 2), maps[0], 1).weight.shape for _ in range(2)]
    assert layers[0] == (2, 40)
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])
    assert equal(news[0].state_dict(), news[1].state_dict())
    linear = nn.Linear(10, 2)
    state = torch.get_rng_state()
    assert torch.equal(split_inputs(linear, maps[0], 1).weight, split_inputs(linear, maps[0], 1).weight)
    truncate(old, 2), grow(old, news[0], 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.bincount(maps[0]).tolist() == [4] * 10  # as evenly as the numbers allow


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_copies_drift_apart(optimizer: Any) -> None:
    """Equal shares would keep copies equal for ever, and shares that are equal for all outputs would under Adam."""
    old, new = lived(built("dense_small:4-6-8")), built("dense_small:8-12-16")
    net = nn.Sequential(new, split_inputs(nn.Linear(8, 5), grow(old, new))).train()
    first = new.body[0].weight
    start = first.detach().clone()
    _, twins = torch.unique(first.detach().flatten(1), dim=0, return_inverse=True)
    assert len(set(twins.tolist())) == 4
    steps = optimizer(net.parameters(), lr=0.01)
    for _ in range(5):
        steps.zero_grad()
        net(torch.randn(16, 3, SIZE, SIZE)).square().mean().backward()
        steps.step()
    for i in range(4):
        (a, b), (before, _) = first.detach()[twins == i], start[twins == i]
        assert float((a - b).norm() / (a - before).norm()) > 0.1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (("dense_small:8-8", {}), ("dense_small:8-7", {}), "dense_small:8-8 cannot be grown into dense_small:8-7"),
        (("dense_small:8-8", {}), ("dense_small:8-8-8", {}), "no layer halves the map"),
        (("dense_small:8-8-8", {}), ("dense_small:8-8", {}), "cannot be grown into dense_small:8-8:"),
        (("dense_small:8-8-8-8-16", {}), ("dense_small:8-8-8-8-8-8", {}), "no width under an old one"),
        (("dense_small", {"stem": "standard"}), ("dense_small", {"stem": "small"}), "stem"),
        (("dense_small", {"in_channels": 1}), ("dense_small", {}), "channels"),
        (("resnet18", {}), ("resnet50", {}), "resnet18 cannot be grown into resnet50"),
        (("resnet34", {}), ("resnet18", {}), "resnet34 cannot be grown into resnet18"),
        (("resnet18", {"stem": "standard"}), ("resnet34", {"stem": "small"}), "conv1.weight"),
        (("resnet18", {"depth": 4}), ("resnet34", {}), "layer4.0.conv1.weight is only in the new one"),
        (("resnet26d", {}), ("resnet50", {}), "resnet26d cannot be grown into resnet50"),
        (("resnet18", {}), ("dense_small", {}), "resnet18 cannot be grown into dense_small:32"),
        (
            ("mobilenetv3_small_050", {}),
            ("mobilenetv3_small_075", {}),
            "mobilenetv3_small_050 cannot be grown into mobilenetv3_small_075",
        ),
    ],
)
def test_growth_that_cannot_be_is_refused_by_both_names(old: Any, new: Any, words: str) -> None:
    a, b = built(old[0], **old[1]), built(new[0], seed=1, **new[1])
    before = copy.deepcopy(b.state_dict())
    with pytest.raises(UsageError) as caught:
        grow(a, b)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert equal(b.state_dict(), before)


def test_features_that_a_layer_does_not_have_are_refused() -> None:
    for mapping in ([0, 1], [0, 1, 3], [0, 1, 1]):
        with pytest.raises(UsageError, match="takes 3 features"):
            split_inputs(nn.Linear(3, 2), torch.tensor(mapping))
    assert split_inputs(nn.Linear(3, 2, bias=False), torch.tensor([0, 1, 2, 0])).bias is None


def trained(net: nn.Module, steps: int = 3) -> tuple[set[str], set[str]]:
    """The parameters and the buffers that so many steps of SGD with weight decay change."""
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(steps):
        net.train()
        optimizer.zero_grad()
        net(torch.randn(8, 3, 16, 16)).square().mean().backward()
        optimizer.step()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    parameters = {name for name, _ in net.named_parameters()}
    return moved & parameters, moved - parameters


@pytest.mark.parametrize("batch_norm", ["moves", "fixed"])
@pytest.mark.parametrize("name", ["resnet18", "dense_small", "mobilenetv3_small_050"])
def test_only_what_is_fresh_is_trained(name: str, batch_norm: Any) -> None:
    full = built(name, seed=1)
    grown = regrow(lived(built(name, depth=4)), full)
    head = nn.Linear(len(full.eval()(torch.zeros(1, 3, 16, 16))[0]), 4)
    net: Any = nn.Sequential(full, head)
    net.train()(torch.randn(8, 3, 16, 16)).sum().backward()  # gradients that must not be followed
    frozen = freeze(full, grown.copied, batch_norm)
    assert all((p.grad is None) == (k in frozen) for k, p in full.named_parameters())
    assert frozen == [k for k, _ in full.named_parameters() if k in grown.copied]
    net = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    parameters, buffers = trained(net)
    fresh = {f"0.{k}" for k in grown.fresh} | {"1.weight", "1.bias"}
    all_buffers = {k for k, _ in net.named_buffers()}
    assert parameters == {k for k, _ in net.named_parameters()} & fresh
    assert buffers == (all_buffers if batch_norm == "moves" else all_buffers & fresh)
    unfreeze(net[0], frozen)
    parameters, buffers = trained(net)
    assert buffers == all_buffers and parameters == {k for k, _ in net.named_parameters()}


def test_fixed_statistics_are_used_and_hold_in_the_networks_of_a_run() -> None:
    encoder = lived(built("dense_small:8-8-8"))
    freeze(encoder, encoder.state_dict(), "fixed")
    images = torch.randn(4, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = encoder.eval()(images)
    for target in (Momentum(), Shared()):
        networks = Networks(copy.deepcopy(encoder), 8, Heads(MLP((8,), 4)), target)
        networks.train()
        for branch in (networks.online, networks.target):
            if branch is not None:
                assert branch.projector[1].training and not any(
                    m.training for m in branch.encoder.body if isinstance(m, nn.BatchNorm2d)
                )
                assert branch.encoder.body[1] is not encoder.body[1]
                torch.testing.assert_close(branch.encoder(images), expected)
        unfreeze(networks.online.encoder, encoder.state_dict())
        assert networks.online.encoder.body[1].training
        assert networks.target is None or not networks.target.encoder.body[1].training  # each copy has its own
    assert not encoder.train().body[1].training


def test_what_cannot_be_frozen_is_refused() -> None:
    net = DenseSmall(3, "small", (4, 4))
    with pytest.raises(UsageError, match=r'no tensor "body.0.weigh"; did you mean "body.0.weight"'):
        freeze(net, ["body.0.weigh"])
    with pytest.raises(UsageError, match="wanted moves or fixed"):
        freeze(net, [], "stays")  # type: ignore[arg-type]
    assert freeze(net, ["body.1.running_mean"], "fixed") == [] and net.train().body[1].training
    assert all(p.requires_grad for p in net.parameters())
