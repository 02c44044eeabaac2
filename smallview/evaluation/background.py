"""Pictures whose background goes with the class in training and not in the test: objects pasted on photographs.

Made from any gray objects on black (Fashion-MNIST) and any photographs (flowers). Legend: N objects, M photographs, K classes, S the side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smallview.errors import DataError
from smallview.seeds import generator

Bytes = npt.NDArray[np.uint8]
MOST_PART = 0.9


@dataclass(frozen=True, eq=False)
class BackgroundShift:
    """Training pictures, test pictures whose backgrounds go with the class as in training, and the same with any background.

    Each is (uint8 [N, S, S, 3], labels int64 [N]); both test parts show the same objects.
    """

    train: tuple[Bytes, npt.NDArray[np.int64]]
    same: tuple[Bytes, npt.NDArray[np.int64]]
    shuffled: tuple[Bytes, npt.NDArray[np.int64]]


def paste(
    objects: Bytes,
    labels: npt.NDArray[np.int64],
    photographs: list[Bytes],
    *,
    correlation: float,
    seed: int,
    purpose: str,
    size: int = 32,
    classes: int | None = None,
) -> Bytes:
    """Objects uint8 [N, H, W], wherever they are above 0, in the middle of square patches of photographs [h, w, 3]: uint8 [N, S, S, 3].

    The photographs are dealt out to the classes, so that no two share one. With probability `correlation` an object stands before a
    photograph of its own class, else before one of any class. Picture i depends on (seed, purpose, i) alone. classes: how many share
    the photographs, from the labels unless given.

    Raises:
        DataError: fewer photographs than classes, objects that are larger than the pictures, or photographs without colour.

    Example:
        >>> objects = np.zeros((1, 4, 4), np.uint8)
        >>> objects[0, 1, 1] = 200
        >>> out = paste(objects, np.array([0]), [np.full((9, 9, 3), 7, np.uint8)], correlation=1.0, seed=0, purpose="doc", size=8)
        >>> out.shape, out[0, 3, 3].tolist(), out[0, 0, 0].tolist()
        ((1, 8, 8, 3), [200, 200, 200], [7, 7, 7])
    """
    classes = int(labels.max()) + 1 if classes is None else classes
    if len(photographs) < classes:
        raise DataError(f"{len(photographs)} photographs for {classes} classes; wanted one for each class at least")
    if objects.ndim != 3 or max(objects.shape[1:]) > size:
        raise DataError(f"objects are {list(objects.shape)}; wanted gray ones, [N, H, W], of at most {size} pixels")
    for photograph in photographs:
        if photograph.ndim != 3 or photograph.shape[2] != 3:
            raise DataError(f"a photograph is {list(photograph.shape)}; wanted [h, w, 3]")
    if not 0.0 <= correlation <= 1.0:
        raise DataError(f"correlation is {correlation}; wanted 0 to 1")
    from PIL import Image

    dealt = generator(seed, "backgrounds of classes").permutation(len(photographs))
    own = [dealt[label::classes] for label in range(classes)]
    out = np.empty((len(objects), size, size, 3), np.uint8)
    height, width = objects.shape[1:]
    top, left = (size - height) // 2, (size - width) // 2
    for i, (thing, label) in enumerate(zip(objects, labels, strict=True)):
        draw = generator(seed, f"background {purpose}", i)
        choice = own[int(label)] if draw.random() < correlation else dealt
        photograph = photographs[int(draw.choice(choice))]
        short = min(photograph.shape[:2])
        side = int(draw.integers(min(size, short), max(min(size, short), int(MOST_PART * short)) + 1))
        y, x = (int(draw.integers(0, edge - side + 1)) for edge in photograph.shape[:2])
        patch = photograph[y : y + side, x : x + side]
        if side != size:
            patch = np.asarray(Image.fromarray(patch).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0))
        out[i] = patch
        front = thing > 0
        out[i, top : top + height, left : left + width][front] = thing[front][:, None]
    return out


def background_shift(
    train: tuple[Bytes, npt.NDArray[np.int64]],
    test: tuple[Bytes, npt.NDArray[np.int64]],
    photographs: list[Bytes],
    *,
    correlation: float = 0.95,
    seed: int = 0,
    size: int = 32,
) -> BackgroundShift:
    """The three parts from labeled objects uint8 [N, H, W] and photographs; every class keeps its photographs in all of them.

    In `shuffled` the background says nothing of the class: an encoder, or a probe, that went by it loses there what it gained in `same`.

    Source: the question is that of Xiao et al., 2020 (Noise or Signal), which ReLICv2 claims to answer better than its peers; the
    pictures are of this library.
    """
    # of both parts: a test part without the last class must not deal the photographs anew
    classes = 1 + max(int(np.max(labels)) for _, labels in (train, test))
    parts = []
    for (objects, labels), share, purpose in (
        (train, correlation, "train"),
        (test, correlation, "same"),
        (test, 0.0, "shuffled"),
    ):
        numbers = np.asarray(labels, np.int64)
        made = paste(objects, numbers, photographs, correlation=share, seed=seed, purpose=purpose, size=size, classes=classes)
        parts.append((made, numbers))
    return BackgroundShift(*parts)
