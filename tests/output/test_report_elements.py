"""What a report is built of: elements that text cannot break out of, curves, sheets of small pictures, the map."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import read
from PIL import Image

from smallview.output.atlas import chart_of, extremes, make_atlas, map_places, neighbour_rows
from smallview.output.charts import Chart, Dots, Series, dot_plot, draw
from smallview.output.markup import Markup, escaped, join, name_of, table, tag
from smallview.output.sprites import sheet_of, square

HOSTILE = st.text(alphabet=st.sampled_from(list("<>&\"'/=abc\n\t\x1b\x00\u202e\u2066\ud8ff\udc80‏\u2028 -!")), max_size=30)


@given(HOSTILE, HOSTILE)
def test_text_stays_text_wherever_it_stands(text: str, other: str) -> None:
    row = table(other, ["a", other], [[text, name_of(other)]])
    found = read(tag("div", text, row, tag("p", join(text, other)), title=text, aria_label=other))
    assert {name for name, _ in found.tags} <= {
        "div",
        "p",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "bdi",
        "wbr",
    }
    assert found.tags[0][1].keys() == {"title", "aria-label"}
    assert all(sign.isprintable() for sign in found.text)


def test_only_markup_is_taken_as_it_is() -> None:
    assert escaped(Markup("<b>")) == "<b>" and escaped("<b>") == "&lt;b&gt;"
    assert tag("a", None, 3, class_="x", hidden=False, disabled=True) == '<a class="x" disabled>3</a>'
    assert escaped("\udcff") == "\\udcff"


def test_a_curve_shows_its_points_and_says_them() -> None:
    points = [(float(x), 5.0 - x / 50) for x in range(100)]
    drawn = draw(Chart("Loss", [Series("a", points), Series("b", points[:50], 1)], "nats", [(0.0, "16 px"), (60.0, "32 px")]))
    found = read(drawn)
    svg = next(attributes for name, attributes in found.tags if name == "svg")
    assert "a: 5 at step 0, 3.02 at step 99" in str(svg["aria-label"]) and "from step 60: 32 px" in str(svg["aria-label"])
    paths = [str(attributes["d"]) for name, attributes in found.tags if name == "path"]
    assert [path.count("L") for path in paths] == [99, 49]
    heights = [float(pair.split()[1]) for pair in paths[0][1:].split("L")]
    assert heights == sorted(heights)  # a falling loss falls on the page: y grows downwards
    assert draw(Chart("nothing", [Series("a", [])])) == ""


@pytest.mark.parametrize("ys", [[1.0], [0.0, 0.0], [-3.0, 2.0], [1e-12, 1e12], [1e300, 1e308], [5.0, 5.0 + 1e-12]])
def test_curves_of_any_size_stay_in_the_frame(ys: list[float]) -> None:
    drawn = draw(Chart("x", [Series("a", list(enumerate(ys)))]))
    path = next(str(attributes["d"]) for name, attributes in read(drawn).tags if name == "path")
    places = [tuple(map(float, pair.split())) for pair in path[1:].split("L")]
    assert all(0 <= x <= 380 and 0 <= y <= 190 for x, y in places)


def test_floors_stand_where_their_values_are() -> None:
    drawn = read(dot_plot([Dots("knn", 60.0, 2.0, 20.0, 40.0), Dots("linear", 70.0, None, None, None)]))
    square_ = next(float(str(a["x"])) + 4 for name, a in drawn.tags if name == "rect")
    ring, full = [float(str(a["cx"])) for name, a in drawn.tags if name == "circle"][:2]
    assert square_ < ring < full and abs((ring - square_) - (full - ring)) < 0.2


def test_a_long_name_is_inside_the_frame_and_above_its_line() -> None:
    drawn = read(dot_plot([Dots("lowshot 25 a class prototypes top-1 %", 60.0, 2.0, 20.0, 40.0)] * 2))
    names = [a for name, a in drawn.tags if name == "text" and a.get("class") == "metric"]
    lines = [float(str(a["cy"])) for name, a in drawn.tags if name == "circle" and a.get("class") == "this"]
    assert [a["x"] for a in names] == ["0", "0"]  # written from its left edge, which is the frame's
    assert all(8 < line - float(str(a["y"])) < 20 for a, line in zip(names, lines, strict=True))
    assert float(str(names[1]["y"])) - lines[0] > 15


def decoded(css: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(css.partition("base64,")[2].partition(")")[0])))


def test_a_sheet_keeps_its_pictures_and_its_bounds() -> None:
    shades = [np.full((40, 30, 3), 25 * i, np.uint8) for i in range(10)]
    sprites = sheet_of("s0", 10, lambda i: shades[i], 50_000)
    sheet = np.asarray(decoded(sprites.css).convert("L"))
    side = sheet.shape[1] // sprites.columns
    for i in range(10):
        x, y = (int(part.partition(":")[2]) for part in sprites.of(i).split(";"))
        assert abs(int(sheet[y * side + side // 2, x * side + side // 2]) - 25 * i) < 6


def test_pictures_of_noise_are_shrunk_until_they_fit() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 64, 64, 3), np.uint8)
    sprites = sheet_of("s0", 600, lambda i: noise[i % 50], 870_000)
    assert len(sprites.css) < 880_000 and decoded(sprites.css).width // sprites.columns >= 24


def test_the_centre_square_is_shown_in_colour() -> None:
    wide = np.zeros((10, 30, 1), np.uint8)
    wide[:, 10:20] = 200
    assert square(wide, 8).min() == 200 and square(wide, 8).shape == (8, 8, 3)


def test_the_map_keeps_groups_together_and_is_the_same_each_time() -> None:
    random = np.random.default_rng(0)
    features = (np.repeat(np.eye(3, 16), 20, axis=0) + random.normal(0, 0.05, (60, 16))).astype(np.float32)
    places, how, _ = map_places(features)
    assert "t-SNE" in how and places.min() >= 0 and places.max() <= 1
    middles = places.reshape(3, 20, 2).mean(1)
    own = np.linalg.norm(places.reshape(3, 20, 2) - middles[:, None], axis=2).max()
    assert min(np.linalg.norm(middles[i] - middles[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 2 * own
    assert np.array_equal(places, map_places(features)[0])


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_pictures_or_equal_ones_are_shown_too(n: int) -> None:
    for features in (np.ones((n, 4), np.float32), np.zeros((n, 4), np.float32), np.eye(n, 4, dtype=np.float32)):
        atlas = make_atlas(features, [f"{i}.png" for i in range(n)], None)
        assert np.isfinite(atlas.places).all() and len(atlas) == n
        sprites = sheet_of("s0", n, lambda i: np.zeros((4, 4, 1), np.uint8), 10_000)
        for part in (chart_of(atlas, sprites), neighbour_rows(atlas, sprites), extremes(atlas, sprites)):
            read(part)


def test_neighbours_and_strange_ones_are_who_they_are() -> None:
    random = np.random.default_rng(1)
    features = np.concatenate([np.eye(2, 8).repeat(30, axis=0), -np.eye(8)[7:]]).astype(np.float32)
    features[:60] += random.normal(0, 0.02, (60, 8)).astype(np.float32)
    labels = [*["a"] * 30, *["b"] * 30, "c"]
    atlas = make_atlas(features, [f"{i:02}.png" for i in range(61)], labels)
    assert int(atlas.density.argmin()) == 60
    found = atlas.agreement(random.normal(size=(61, 12)).astype(np.float32))
    assert found is not None and found[0] > 0.9 > found[1] and abs(found[2] - (2 * 900 + 1) / 61**2) < 1e-9
    sprites = sheet_of("s0", 61, lambda i: np.zeros((4, 4, 3), np.uint8), 50_000)
    strange = extremes(atlas, sprites).partition("Strangest")[2]
    assert strange.index("60.png") < 400
