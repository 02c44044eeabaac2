"""Stages as values, subsets, and schedules of resolution: what is written down, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from smallview.config import RunConfig, pictures_of_epoch, smallest_side, stage_settings, total_steps
from smallview.data.sources import Source, open_source
from smallview.data.subsets import Subset, positions, read_subset, typical_and_diverse
from smallview.errors import DataError, UsageError
from smallview.resolving import Facts, resolve_config
from smallview.schedules import Ramp
from smallview.settings import dump_toml, from_tables, to_tables
from smallview.stages import Stage, read_stages, spans
from smallview.views.view import View, pixels

FACTS = Facts("pictures", 1000, 64, "cpu", 2)


def settled(sets: dict[str, object] | None = None, **given: Any) -> RunConfig:
    return resolve_config(FACTS, given, sets=sets)[0]


def labelled(counts: tuple[int, ...] = (30, 20, 10, 40)) -> Source:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = np.random.default_rng(0).permutation(len(labels))
    return open_source((np.zeros((len(labels), 4, 4), np.uint8), labels[order]))


def test_stages_are_read_as_they_are_written() -> None:
    assert read_stages("56x800, 112x200,224x100") == (Stage(56, 800.0), Stage(112, 200.0), Stage(224, 100.0))
    assert read_stages("16x70%,32x30%") == (Stage(16, share=0.7), Stage(32, share=0.3))


@pytest.mark.parametrize(
    "text", ["", "56", "56x", "x800", "56x800;112x200", "56*800", "56x-1", "56x0", "2x10", "56x101%", "56x1e3"]
)
def test_text_that_means_no_stages_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"--stages.*(wanted)"):
        read_stages(text)


@pytest.mark.parametrize(
    ("stages", "wanted"),
    [
        ((Stage(16, 1.0), Stage(32, share=0.5)), "one kind for all"),
        ((Stage(16, share=0.5), Stage(32, share=0.4)), "90% of the run"),
        ((Stage(16, 1.0, schedule="continue"),), "goes on with a stage before it"),
        ((Stage(16, 1.0, trains="new"),), "goes on with a stage before it"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(stages: tuple[Stage, ...], wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        settled(stages=stages)


def test_a_length_beside_epochs_of_stages_is_refused() -> None:
    with pytest.raises(UsageError, match="wanted one of them"):
        settled(stages=read_stages("16x2,32x1"), epochs=3.0)


FILE = {"stages": [{"size": 16, "epochs": 2.0}, {"size": 32, "epochs": 1.0}]}


def test_stages_of_a_file_and_of_paths_say_size_and_length_as_those_of_a_flag_do() -> None:
    config, reasons = resolve_config(FACTS, {}, FILE)
    assert (config.size, config.epochs, reasons["size"], reasons["epochs"]) == (32, 3.0, "the stages", "the stages")
    again = resolve_config(FACTS, {"stages": read_stages("16x5,48x2")}, to_tables(config))[0]
    assert (again.size, again.epochs) == (48, 7.0)
    assert resolve_config(FACTS, {}, {**FILE, "size": 24})[0].size == 24 == resolve_config(FACTS, {"size": 24}, FILE)[0].size
    longer = settled({"stages.1.size": 64, "stages.1.epochs": 4.0}, stages=read_stages("16x2,32x1"))
    assert (longer.size, longer.epochs) == (64, 6.0)


def test_a_length_beside_epochs_of_a_files_stages_is_refused() -> None:
    for given, sets in (({"epochs": 5.0}, {}), ({"minutes": 5.0}, {}), ({}, {"epochs": 5.0})):
        with pytest.raises(UsageError, match="wanted one of them"):
            resolve_config(FACTS, given, FILE, sets)


def test_stages_go_through_toml_and_back() -> None:
    config = settled(
        {"stages.0.depth": 3, "stages.1.schedule": "continue", "stages.1.subset": Subset(fraction=0.5)},
        stages=read_stages("16x2,32x1"),
    )
    assert config.stages[0].depth == 3 and config.size == 32 and config.epochs == 3.0
    assert "[[stages]]" in dump_toml(to_tables(config))
    assert from_tables(RunConfig, to_tables(config)) == config


def test_each_stage_is_a_run_of_its_own() -> None:
    config = settled({"stages.0.lr": 0.5, "stages.1.batch_size": 32}, stages=read_stages("16x20%,32x80%"), epochs=10.0)
    first, second = (stage_settings(config, k) for k in range(2))
    assert (first.size, first.epochs, first.optimizer.lr) == (16, 2.0, 0.5)
    assert (second.size, second.epochs, second.optimizer.lr) == (32, 8.0, config.optimizer.lr)
    assert (first.batch_size, second.batch_size) == (config.batch_size, 32)
    assert first.seed == config.seed != second.seed and not first.stages
    minutes = stage_settings(settled(stages=read_stages("16x20%,32x80%"), minutes=10.0), 1)
    assert (minutes.minutes, minutes.epochs) == (8.0, None)


def test_what_goes_on_is_a_part_of_one_schedule() -> None:
    stages = [Stage(16, 1.0), Stage(24, 1.0, schedule="continue"), Stage(32, 2.0, schedule="continue"), Stage(48, 5.0)]
    assert spans(stages) == [(0.0, 0.25), (0.25, 0.5), (0.5, 1.0), (0.0, 1.0)]


def test_pictures_are_packed_for_the_largest_stage() -> None:
    assert smallest_side(settled(stages=read_stages("16x2,96x1,32x1"))) == smallest_side(settled(size=96))


def test_resolution_multiplies_the_sizes_of_all_views() -> None:
    config = settled({"method.views.1.size": 0.5}, resolution="Ramp(0.5, 1.0, until=0.5)", size=64)
    assert [pixels(view.size, 64, 0.0) for view in config.method.views] == [32, 16]
    assert [pixels(view.size, 64, 1.0) for view in config.method.views] == [64, 32]
    assert from_tables(RunConfig, to_tables(config)) == config


@pytest.mark.parametrize("resolution", ["Ramp(0.5, 2.0)", "none", "Ramp(16, 32)", "Wobble(1, 2)", "0"])
def test_a_resolution_that_is_no_part_of_the_size_is_refused(resolution: str) -> None:
    with pytest.raises(UsageError, match=r"--resolution.*"):
        settled(resolution=resolution)


def test_a_view_that_changes_its_size_already_is_no_place_for_a_resolution() -> None:
    with pytest.raises(UsageError, match="view 0, whose size changes already"):
        settled({"method.views.0.size": "Ramp(0.5, 1.0)"}, resolution="0.5")


def test_disturbances_grow_with_their_strength() -> None:
    view = View(strength=Ramp(0.0, 1.0), scale=(0.2, 1.0))
    assert view.at(0.0).scale == (1.0, 1.0) and view.at(0.0).hue == 0.0
    assert view.at(0.5).scale == pytest.approx((0.6, 1.0)) and view.at(0.5).brightness == pytest.approx(0.2)
    assert (view.at(1.0).scale, view.at(1.0).hue) == (View().scale, View().hue)


@pytest.mark.parametrize(
    ("text", "subset"),
    [
        ("50", Subset(pictures=50)),
        ("12.5%", Subset(fraction=0.125)),
        ("10/class", Subset(per_class=10)),
        ("2classes", Subset(classes=2)),
        ("2classes:10", Subset(classes=2, pictures=10)),
    ],
)
def test_subsets_are_read_as_they_are_written(text: str, subset: Subset) -> None:
    assert read_subset(text) == subset


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "-5", "10/klass", "0/class", "half", "2classes:", "2 classes"])
def test_text_that_means_no_subset_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--subset"):
        read_subset(text)


# S3L's three samplers: exact counts, no picture twice, the same ones for the same seed, classes alike (check 20)
@pytest.mark.parametrize(
    ("subset", "count", "each"),
    [
        (Subset(per_class=10), 40, {10}),
        (Subset(classes=2, pictures=20), 20, {10}),
        (Subset(classes=3, per_class=5), 15, {5}),
        (Subset(pictures=37), 37, None),
        (Subset(fraction=0.25), 25, None),
    ],
)
def test_a_subset_has_the_counts_that_it_says(subset: Subset, count: int, each: set[int] | None) -> None:
    source = labelled()
    assert source.labels is not None
    chosen = positions(source, subset, seed=3)
    assert len(chosen) == count == len(set(chosen.tolist())) and (np.diff(chosen) > 0).all()
    assert chosen.tolist() == positions(source, subset, seed=3).tolist() != positions(source, subset, seed=4).tolist()
    if each is not None:
        assert set(np.unique(source.labels[chosen], return_counts=True)[1].tolist()) == each


def test_a_larger_subset_holds_a_smaller_one() -> None:
    source = labelled()
    for small, large in ((Subset(pictures=20), Subset(pictures=60)), (Subset(per_class=3), Subset(per_class=9))):
        assert set(positions(source, small, 0).tolist()) < set(positions(source, large, 0).tolist())


@pytest.mark.parametrize(
    ("subset", "wanted"),
    [
        (Subset(pictures=101), "101 pictures of arrays are asked for and there are 100"),
        (Subset(per_class=11), "11 pictures of class 2 are asked for and there are 10"),
        (Subset(classes=5), "5 classes of arrays are asked for and there are 4"),
        (Subset(classes=4, pictures=3), "one of each at least"),
    ],
)
def test_more_than_there_is_is_refused_with_both_numbers(subset: Subset, wanted: str) -> None:
    with pytest.raises(DataError, match=wanted):
        positions(labelled(), subset, seed=0)


def test_classes_without_labels_are_refused() -> None:
    with pytest.raises(DataError, match="has no labels"):
        positions(open_source(np.zeros((5, 4, 4), np.uint8)), Subset(per_class=1), seed=0)


@pytest.mark.parametrize(
    "given",
    [{}, {"pictures": 5, "fraction": 0.5}, {"per_class": 0}, {"fraction": 1.5}, {"per_class": 5, "chosen_by": "runs/a"}],
)
def test_a_subset_says_one_thing(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"wanted|goes with"):
        Subset(**given)


def test_equal_steps_count_the_epochs_of_all_pictures() -> None:
    config = settled(subset=Subset(pictures=100), epochs=4.0, batch_size=50)
    assert total_steps(config, pictures_of_epoch(config, 100, 1000)) == 8
    equal = settled(subset=Subset(pictures=100, equal_steps=True), epochs=4.0, batch_size=50)
    assert total_steps(equal, pictures_of_epoch(equal, 100, 1000)) == 80


def test_typical_and_diverse_pictures_are_the_middles_of_groups() -> None:
    draw = np.random.default_rng(0)
    middles = np.eye(8, dtype=np.float32)[:5] * 10
    features = (np.repeat(middles, 40, axis=0) + draw.normal(0, 0.5, (200, 8))).astype(np.float32)
    features[::40] = middles  # the first of each group is its very middle
    assert (typical_and_diverse(features, 5, seed=0) // 40).tolist() == [0, 1, 2, 3, 4]
    assert len(typical_and_diverse(features, 15, seed=0)) == 15
    far = np.linalg.norm(features - np.repeat(middles, 40, axis=0), axis=1)
    chosen = typical_and_diverse(features, 50, seed=0)
    assert far[chosen].mean() < 0.75 * far.mean() and set((chosen // 40).tolist()) == set(range(5))


def test_equal_pictures_are_no_more_clusters_than_they_are() -> None:
    assert len(typical_and_diverse(np.ones((10, 4), np.float32), 6, seed=0)) == 6
