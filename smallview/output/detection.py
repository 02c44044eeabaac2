"""An encoder as the backbone of torchvision's detection models, and a small fine-tune to see what it is worth there.

Legend: B pictures, C channels, H x W pixels, L levels of the pyramid, G boxes of a picture.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from smallview.errors import DataError, UsageError
from smallview.networks.encoders import EncoderConfig
from smallview.networks.modes import evaluating
from smallview.networks.stages import stage_modules
from smallview.seeds import derive, generator

Boxes = npt.NDArray[np.float32]  # [G, 4] as x0, y0, x1, y1 in pixels
LEVELS = 3


class DetectionBackbone(nn.Module):
    """Maps of the encoder's last stages through a feature pyramid: images [B, C, H, W] -> {level: [B, out_channels, h, w]}.

    What torchvision's FasterRCNN and RetinaNet take as a backbone: `out_channels` says how wide every level is, `levels` their names.

    Source: Lin et al., 2017 (feature pyramids).
    """

    def __init__(self, encoder: nn.Module, config: EncoderConfig, out_channels: int, frozen: bool) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.encoder, self.out_channels, self.frozen = encoder, out_channels, frozen
        self._stages = _levels(encoder, config)
        self.levels = [str(i) for i in range(len(self._stages))]
        self.pyramid = FeaturePyramidNetwork([width for _, width, _ in self._stages], out_channels)
        self.strides = [stride for _, _, stride in self._stages]
        if frozen:
            encoder.requires_grad_(False)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The pyramid's levels, the finest first."""
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                # a copy: what comes next may write into it
                seen[name] = output.clone()

            return hook

        modules = stage_modules(self.encoder)
        hooks = [modules[name].register_forward_hook(keep(name)) for name, _, _ in self._stages]
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                if self.frozen:
                    with evaluating(self.encoder):
                        self.encoder(images)
                else:
                    self.encoder(images)
        finally:
            for hook in hooks:
                hook.remove()
        maps = OrderedDict((level, seen[name]) for level, (name, _, _) in zip(self.levels, self._stages, strict=True))
        made: OrderedDict[str, Tensor] = self.pyramid(maps)
        return made


def _levels(encoder: nn.Module, config: EncoderConfig) -> list[tuple[str, int, int]]:
    """(stage, width, stride) of the last stage at each of the last few resolutions, the finest first."""
    side = 64 if config.size < 64 else config.size
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                shapes[name] = tuple(output.shape)

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in stage_modules(encoder).items()]
    try:
        with torch.no_grad(), evaluating(encoder):
            encoder(torch.zeros(1, config.in_channels, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    by_stride: dict[int, tuple[str, int, int]] = {}
    for name, shape in shapes.items():
        stride = max(1, round(side / shape[2]))
        by_stride[stride] = (name, shape[1], stride)
    if not by_stride:
        raise UsageError(f"{type(encoder).__name__} gives no maps; detection wants a convolutional encoder")
    return [by_stride[stride] for stride in sorted(by_stride)][-LEVELS:]


def detection_backbone(
    encoder: nn.Module, config: EncoderConfig, *, out_channels: int = 128, frozen: bool = False, seed: int = 0
) -> DetectionBackbone:
    """The encoder with a feature pyramid, as a backbone for torchvision's detection models.

    Raises:
        UsageError: an encoder without maps.

    Example:
        >>> from smallview.networks.encoders import build_encoder
        >>> net, config = build_encoder("dense_small", size=32)
        >>> backbone = detection_backbone(net, config, out_channels=16)
        >>> {name: tuple(level.shape) for name, level in backbone(torch.zeros(1, 3, 64, 64)).items()}
        {'0': (1, 16, 32, 32), '1': (1, 16, 16, 16), '2': (1, 16, 8, 8)}
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "pyramid weights"))
        return DetectionBackbone(encoder, config, out_channels, frozen)


@torch.random.fork_rng(devices=[])
def detector(
    backbone: DetectionBackbone, config: EncoderConfig, *, classes: int = 1, side: int = 128, seed: int = 0
) -> nn.Module:
    """Torchvision's Faster R-CNN on the backbone, for so many classes beside the background; pictures in [0, 1] are resized to `side`.

    What it adds to the backbone starts from weights that depend on the seed alone.
    """
    torch.manual_seed(derive(seed, "detector weights"))
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    sizes = tuple((side // 2 ** (len(backbone.levels) - i),) for i in range(len(backbone.levels)))
    made: nn.Module = FasterRCNN(
        backbone,
        num_classes=classes + 1,
        min_size=side,
        max_size=2 * side,
        image_mean=list(config.mean or (0.5,) * config.in_channels),
        image_std=list(config.std or (0.25,) * config.in_channels),
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign(backbone.levels, output_size=5, sampling_ratio=2),
        # proposals for pictures of few things: torchvision's own numbers are for COCO, and take most of the time on a CPU
        rpn_pre_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=100,
        box_batch_size_per_image=64,
        box_detections_per_img=20,
    )
    return made


def boxes_of(mask: npt.NDArray[Any], smallest: float = 0.002) -> Boxes:
    """Boxes [G, 4] around the connected parts of a foreground [H, W] that cover at least that share of the picture.

    Example:
        >>> mask = np.zeros((10, 10), bool)
        >>> mask[2:5, 3:8] = True
        >>> boxes_of(mask).tolist()
        [[3.0, 2.0, 8.0, 5.0]]
    """
    from scipy import ndimage

    numbered, _ = ndimage.label(mask > 0)
    out = []
    for i, where in enumerate(ndimage.find_objects(numbered), 1):
        if where is not None and int((numbered[where] == i).sum()) >= smallest * mask.size:
            rows, columns = where
            out.append([columns.start, rows.start, columns.stop, rows.stop])
    return np.array(out, np.float32).reshape(-1, 4)


def fine_tune_detector(
    model: nn.Module,
    pictures: Sequence[npt.NDArray[np.uint8]],
    boxes: Sequence[Boxes],
    *,
    steps: int = 200,
    batch_size: int = 4,
    lr: float = 0.005,
    seed: int = 0,
    say: Callable[[str], None] = lambda message: None,
) -> list[float]:
    """Train a detector in place on pictures uint8 [H, W, C] with boxes [G, 4] of one class; -> the loss of every step.

    SGD with momentum 0.9 and a cosine to 0, flips, BatchNorm of the encoder as in evaluation: the batches are too small for it.

    Raises:
        DataError: unequally many, or pictures without any box.
    """
    usable = [i for i, found in enumerate(boxes) if len(found)]
    if len(boxes) != len(pictures) or not usable:
        raise DataError(
            f"{len(pictures)} pictures and {len(boxes)} lists of boxes, {len(usable)} with any; wanted one list each, and boxes"
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr, momentum=0.9, weight_decay=1e-4)
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):
        for step in range(steps):
            torch.manual_seed(derive(seed, "detector", step))  # proposals are sampled
            draw = generator(seed, "detector pictures", step)
            model.train()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
            images, targets = [], []
            for i in draw.choice(usable, min(batch_size, len(usable)), replace=False):
                image, found = _tensor(pictures[int(i)]), torch.from_numpy(np.array(boxes[int(i)], np.float32))
                if draw.random() < 0.5:
                    image, width = image.flip(2), image.shape[2]
                    found = torch.stack([width - found[:, 2], found[:, 1], width - found[:, 0], found[:, 3]], 1)
                images.append(image)
                targets.append({"boxes": found, "labels": torch.ones(len(found), dtype=torch.int64)})
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            loss = sum(model(images, targets).values(), torch.zeros(()))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 10.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            if step % 20 == 19:
                say(f"detector: step {step + 1} of {steps}, loss {np.mean(losses[-20:]):.3f}")
    return losses


def _tensor(picture: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255.0


@torch.no_grad()
def detect(model: nn.Module, pictures: Sequence[npt.NDArray[np.uint8]]) -> list[tuple[Boxes, npt.NDArray[np.float32]]]:
    """(boxes [G, 4], scores [G]) that a detector finds in each picture."""
    out = []
    with evaluating(model):
        for picture in pictures:
            (found,) = model([_tensor(picture)])
            out.append((found["boxes"].numpy(), found["scores"].numpy()))
    return out


def average_precision(
    found: Sequence[tuple[Boxes, npt.NDArray[np.float32]]], boxes: Sequence[Boxes], overlap: float = 0.5
) -> float:
    """Average precision in percent of one class: a box counts where it overlaps a true one that no better box has taken.

    All points, precision made to fall with recall. overlap: intersection over union that is enough.

    Source: Everingham et al., 2010, without the eleven points.

    Raises:
        DataError: unequally many pictures, or no true box at all.

    Example:
        >>> box = np.array([[0.0, 0.0, 4.0, 4.0]], np.float32)
        >>> average_precision([(box, np.array([0.9], np.float32))], [box])
        100.0
    """
    if len(found) != len(boxes):
        raise DataError(
            f"boxes found in {len(found):,} pictures and true ones of {len(boxes):,}; wanted one list for each picture"
        )
    total = sum(len(real) for real in boxes)
    if total == 0:
        raise DataError("there is no true box to find; wanted one or more")
    ranked = sorted(
        ((float(score), i, j) for i, (_, scores) in enumerate(found) for j, score in enumerate(scores)), reverse=True
    )
    taken = [np.zeros(len(real), np.bool_) for real in boxes]
    hits = np.zeros(len(ranked))
    for rank, (_, i, j) in enumerate(ranked):
        overlaps = _overlaps(found[i][0][j], boxes[i])
        if len(overlaps) and overlaps.max() >= overlap and not taken[i][overlaps.argmax()]:
            taken[i][overlaps.argmax()] = True
            hits[rank] = 1.0
    recall = np.cumsum(hits) / total
    precision = np.cumsum(hits) / np.arange(1, len(ranked) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return round(100.0 * float((np.diff(recall, prepend=0.0) * envelope).sum()), 4)


def _overlaps(box: npt.NDArray[np.float32], others: Boxes) -> npt.NDArray[np.float64]:
    corners = np.concatenate([np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])], 1)
    inside = np.clip(corners[:, 2:] - corners[:, :2], 0, None).prod(1)
    area = float((box[2:] - box[:2]).prod())
    shared: npt.NDArray[np.float64] = inside / (area + (others[:, 2:] - others[:, :2]).prod(1) - inside)
    return shared
