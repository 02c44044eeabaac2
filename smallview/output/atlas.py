"""What an encoder makes of pictures, to look at: a map of them, their neighbours, the most typical and the strangest ones.

Legend: N pictures, F features, k neighbours.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from smallview.evaluation.knn import nearest
from smallview.output.markup import Child, Markup, join, name_of, tag
from smallview.output.sprites import Sprites, thumbs
from smallview.seeds import derive, generator

MOST = 2000
NEIGHBOURS, QUERIES, EXTREMES = 8, 12, 12
DENSE = 20  # neighbours by which typical and strange is told
HUES = 9  # of classes on the map; the rarer ones share a tenth
FEWEST_FOR_TSNE = 12


@dataclass(frozen=True, eq=False)
class Atlas:
    """N pictures as an encoder sees them: their places float64 [N, 2] in [0, 1], how these were found and how wide for their height,
    each one's nearest others
    int64 [N, k] with the cosine similarities [N, k], and how near its `DENSE` nearest others are on average [N].

    names: for people. labels: of the pictures, as names, or None.
    """

    names: Sequence[str]
    labels: Sequence[str] | None
    places: npt.NDArray[np.float64]
    how: str
    ratio: float
    near: npt.NDArray[np.float32]
    which: npt.NDArray[np.int64]
    density: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.names)

    def called(self, i: int) -> str:
        """Picture i in words: its name, and its class unless the name begins with it."""
        name = self.names[i]
        if self.labels is None or name.startswith(f"{self.labels[i]}/"):
            return name
        return f"{name} ({self.labels[i]})"

    def agreement(self, pixels: npt.NDArray[np.float32]) -> tuple[float, float, float] | None:
        """The share of nearest others that are of the picture's class: by the encoder, by raw pixels [N, P], and if drawn at random.

        None without labels.
        """
        if self.labels is None or len(set(self.labels)) < 2:
            return None
        numbers = np.unique(np.asarray(self.labels, str), return_inverse=True)[1]
        share = np.bincount(numbers) / len(numbers)
        _, by_pixels = _others(pixels, NEIGHBOURS)
        found = [float((numbers[which] == numbers[:, None]).mean()) for which in (self.which, by_pixels)]
        return found[0], found[1], float((share**2).sum())


def map_places(features: npt.NDArray[np.float32], seed: int = 0) -> tuple[npt.NDArray[np.float64], str, float]:
    """Places [N, 2] in [0, 1] of features [N, F], by t-SNE of 50 principal components; how, in words; and width by height.

    The same each time.

    Few pictures, or such as are all alike, are shown by their two first components.

    Example:
        >>> places, how, _ = map_places(np.eye(4, dtype=np.float32))
        >>> places.shape, how
        ((4, 2), 'two principal components')
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    n, seed = len(unit), derive(seed, "map") % 2**31
    apart = len(np.unique(unit, axis=0))
    found, how = np.zeros((n, 2)), "all pictures in one point"
    if apart > 1:
        parts = min(50, n - 1, unit.shape[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            principal = PCA(parts, svd_solver="full").fit_transform(unit.astype(np.float64))
            found[:, : min(2, parts)], how = principal[:, :2], "two principal components"
            if apart >= FEWEST_FOR_TSNE:
                perplexity = min(30.0, (n - 1) / 3)
                layout = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500, n_jobs=1)
                found = np.asarray(layout.fit_transform(principal), np.float64)
                how = f"t-SNE (perplexity {perplexity:.3g}) of {parts} principal components"
    span = np.ptp(found, axis=0)
    wide = np.maximum(span, 0.5 * span.max() or 1.0)  # no flatter than twice as wide as high
    return (found - found.min(0) + (wide - span) / 2.0) / wide, how, float(wide[0] / wide[1])


def make_atlas(features: npt.NDArray[np.float32], names: Sequence[str], labels: Sequence[str] | None) -> Atlas:
    """The atlas of pictures by their features [N, F]; of two or more."""
    places, how, ratio = map_places(features)
    near, which = _others(features, DENSE)
    return Atlas(names, labels, places, how, ratio, near[:, :NEIGHBOURS], which[:, :NEIGHBOURS], near.mean(1))


def _others(vectors: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    all_of_them = torch.from_numpy(vectors)
    near, which = nearest(all_of_them, all_of_them, k, leave_one_out=True)
    return near.numpy(), which.numpy()


def chart_of(atlas: Atlas, sprites: Sprites) -> Markup:
    """The map: a point for each picture, which shows it when pointed at or reached by the arrow keys; classes can be singled out."""
    hues: dict[str, int] = {}
    keys: list[Markup] = []
    if atlas.labels is not None:
        counted = Counter(atlas.labels).most_common()
        hues = {name: min(i, HUES) for i, (name, _) in enumerate(counted)}
        shown = counted[:HUES] if len(counted) > HUES + 1 else counted
        rest = sum(count for _, count in counted) - sum(count for _, count in shown)
        entries: list[tuple[int | None, Child, int]] = [(None, "all", len(atlas))]
        entries += [(hues[name], name_of(name), count) for name, count in shown]
        entries += [(HUES, f"{len(counted) - HUES} more classes", rest)] * (rest > 0)
        for hue, called, count in entries:
            radio = tag("input", type="radio", name="class", id=f"k{'' if hue is None else hue}", checked=hue is None)
            key = None if hue is None else tag("i", class_=f"key h{hue}", aria_hidden="true")
            keys.append(tag("label", radio, key, called, " ", tag("small", f"{count:,}")))
    points = []
    for i, (x, y) in enumerate(atlas.places.tolist()):
        hue = hues[atlas.labels[i]] if atlas.labels is not None else 0
        side = ("r" if x > 0.5 else "") + ("b" if y > 0.5 else "")
        style = f"left:{100 * x:.2f}%;top:{100 * y:.2f}%;{sprites.of(i)}"
        called = atlas.called(i)
        points.append(
            tag(
                "i", role="img", tabindex="-1" if i else "0", class_=f"p h{hue} {side}".rstrip(), style=style, aria_label=called
            )
        )
    inner = tag("div", points, class_="board", style=f"aspect-ratio:{atlas.ratio:.3f}")
    board = tag("div", inner, class_="map", role="group", aria_label="map of pictures")
    legend = tag("fieldset", tag("legend", "Show"), keys, class_="classes") if keys else None
    small = tag("input", type="checkbox", id="as", class_="as"), tag("label", "as pictures", for_="as")
    return tag("div", legend, *small, board, class_=f"atlas {sprites.name}-map")


def neighbour_rows(atlas: Atlas, sprites: Sprites, seed: int = 0) -> Markup:
    """A dozen pictures drawn at random, each with its nearest others."""
    chosen = np.sort(generator(seed, "neighbours").permutation(len(atlas))[:QUERIES])
    rows = []
    for i in chosen.tolist():
        cells = [tag("th", sprites.show(i, atlas.called(i)), tag("span", name_of(atlas.called(i)), class_="name"), scope="row")]
        for near, j in zip(atlas.near[i].tolist(), atlas.which[i].tolist(), strict=True):
            same = atlas.labels is not None and atlas.labels[i] == atlas.labels[j]
            alt = f"{atlas.called(j)}, similarity {near:.2f}" + ", same class" * same
            below = tag("span", f"{near:.2f}", tag("b", " ●", aria_hidden="true") if same else None, class_="name")
            cells.append(tag("td", sprites.show(j, alt), below))
        rows.append(tag("tr", cells))
    titles = [tag("th", title, scope="col") for title in ("picture", *map(str, range(1, atlas.which.shape[1] + 1)))]
    told = "" if atlas.labels is None else "; ● is of the same class"
    caption = tag("caption", f"Nearest others by cosine similarity, the nearest first{told}")
    inner = tag("table", caption, tag("thead", tag("tr", titles)), tag("tbody", rows), class_="near")
    return tag("div", inner, class_="wide", tabindex="0", role="region", aria_label="nearest others")


def extremes(atlas: Atlas, sprites: Sprites) -> Markup:
    """The pictures in the densest places, and those that are far from all others."""
    order = np.argsort(-atlas.density, kind="stable").tolist()
    few = min(EXTREMES, len(order) // 2)

    def shown(title: str, chosen: list[int], told: Markup | None = None) -> Markup:
        below = [join(name_of(atlas.called(i)), tag("small", f" {atlas.density[i]:.2f}")) for i in chosen]
        items = thumbs(sprites, chosen, [atlas.called(i) for i in chosen], below)
        return join(tag("h3", title), told, tag("ul", items, class_="thumbs"))

    told = tag("p", f"By the mean similarity of a picture to its {DENSE} nearest others: the highest here, the lowest below.")
    return join(shown("Most typical", order[:few], told), shown("Strangest", order[::-1][:few]))
