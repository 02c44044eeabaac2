"""What Tab offers in a shell: the words that options take, told without torch, and folders as one goes down them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

from cyclopts import App

# Names that are offered at once; tests hold them against what there is.
METHODS = (
    *(
        "simclr",
        "moco_v2",
        "moco_v3",
        "simo",
        "byol",
        "simsiam",
        "barlow_twins",
        "vicreg",
        "dcl",
        "ressl",
        "lejepa",
        "relic",
        "relic_v2",
    ),
    *("light_moco", "s3l_moco", "s3l_simclr", "s3l_byol"),
    *("simclr_small_batch", "simclr_one_patch", "simclr_noise_only", "combined"),
)
# A few of timm's thousand, those that its small budgets suit; asking timm would take seconds.
ENCODERS = (
    *(
        "dense_small",
        "patches",
        "resnet18",
        "resnet34",
        "resnet50",
        "mobilenetv3_small_050",
        "mobilenetv3_small_100",
        "mobilenetv3_large_100",
    ),
    *("efficientnet_b0", "regnety_002", "convnext_atto", "vit_tiny_patch16_224"),
)
PROTOCOLS = ("knn", "linear", "linear_sgd", "lowshot", "finetune", "supervised", "layers", "robust", "dense", "label_free")
MASKS = ("border_colour", "centre_prior", "spectral_residual", "none", "encoder:")
TARGETS = ("timm", "torchvision", "onnx", "torch-export", "hub")
INPUTS = ("normalised", "float", "uint8")
TASKS = ("linear", "few-labels", "retrieval")
DEVICES = ("auto", "cpu", "cuda", "mps")
STEMS = ("auto", "standard", "small")

Completer = Callable[[Any], tuple[str, ...]]


def words(*known: str) -> Completer:
    """Offers these words."""
    return lambda context: known


def listed(*known: str) -> Completer:
    """Offers these words in a list with commas, each once.

    Example:
        >>> class Typed:
        ...     incomplete = "knn,li"
        >>> listed("knn", "linear", "lowshot")(Typed)
        ('knn,linear', 'knn,lowshot')
    """

    def offer(context: Any) -> tuple[str, ...]:
        before = context.incomplete.rpartition(",")[0]
        prefix = before + "," if before else ""
        return tuple(prefix + word for word in known if word not in before.split(","))

    return offer


def or_folders(*known: str) -> Completer:
    """Offers these words, and the folders that begin as what is typed does.

    Example:
        >>> class Typed:
        ...     incomplete = "no such folder/ma"
        >>> or_folders("none")(Typed)
        ('none',)
    """

    def offer(context: Any) -> tuple[str, ...]:
        place = os.path.dirname(context.incomplete)
        try:
            with os.scandir(place or ".") as entries:
                folders = sorted(
                    os.path.join(place, entry.name) + "/" for entry in entries if entry.is_dir() and entry.name[0] != "."
                )
        except (OSError, ValueError):
            folders = []
        return known + tuple(folder for folder in folders if folder.startswith(context.incomplete))

    return offer


class Completed(App):
    """An app whose script for bash goes down folders: a slash behind them, and names with spaces whole."""

    def generate_completion(
        self, *, prog_name: str | None = None, shell: Literal["zsh", "bash", "fish", "powershell"] | None = None
    ) -> str:
        """The script that makes a shell complete this command."""
        script = super().generate_completion(prog_name=prog_name, shell=shell)
        plain = 'COMPREPLY=( $(compgen -f -- "${cur}") )'
        return script.replace(plain, f"compopt -o filenames 2>/dev/null; local IFS=$'\\n'; {plain}")
