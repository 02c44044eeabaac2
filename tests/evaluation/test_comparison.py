"""Comparisons: paired by seed, said in words that the numbers bear, and refused where protocols differ."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from smallview.errors import UsageError
from smallview.evaluation.comparison import Trained, compare
from smallview.evaluation.metrics import half_width
from smallview.records import Row


def row(value: float, seed: int = 0, metric: str = "linear top-1 %", **changed: Any) -> Row:
    said = {
        "protocol": "linear",
        "protocol_settings": {"steps": 200},
        "train": "a",
        "train_sha256": "1",
        "test": "b",
        "test_sha256": "2",
    }
    return Row("sentence", metric, value, 10.0, 20.0, seed, 100, 1000, {**said, **changed}, {}, half_width(value, 1000))


def trained(group: str, values: dict[int, float], flops: float = 1e15, **changed: Any) -> list[Trained]:
    return [
        Trained(f"{group}-{seed}", group, seed, (row(value, seed, **changed),), {"flops": flops})
        for seed, value in values.items()
    ]


def test_paired_differences_are_students() -> None:
    a, b = {0: 60.0, 1: 62.0, 2: 61.0, 3: 64.0}, {0: 63.0, 1: 64.5, 2: 64.0, 3: 66.5}
    found = compare([*trained("a", a), *trained("b", b)])
    (difference,) = found.differences
    apart = np.array([b[seed] - a[seed] for seed in a])
    wanted = stats.ttest_rel(list(b.values()), list(a.values())).confidence_interval(0.95)
    assert difference.value == pytest.approx(apart.mean()) and difference.paired and difference.pairs == 4
    assert difference.interval == pytest.approx((wanted.high - wanted.low) / 2)
    assert "higher at 4 seeds" in difference.sentence
    cell = found.lines[0].cells["b"]
    assert cell.mean == pytest.approx(64.5) and cell.std == pytest.approx(np.std(list(b.values()), ddof=1))


def test_other_seeds_are_welchs() -> None:
    a, b = [60.0, 62.0, 61.0], [63.0, 66.0, 64.0, 65.0]
    found = compare([*trained("a", dict(enumerate(a))), *trained("b", {i + 10: v for i, v in enumerate(b)})])
    wanted = stats.ttest_ind(b, a, equal_var=False)
    (difference,) = found.differences
    standard = (np.mean(b) - np.mean(a)) / wanted.statistic
    assert not difference.paired and difference.interval is not None
    factor = difference.interval / standard
    freedom = math.floor(wanted.df)
    assert factor == pytest.approx(stats.t.ppf(0.975, freedom)) and factor >= stats.t.ppf(0.975, wanted.df)


def test_no_difference_is_said_where_none_is_shown() -> None:
    found = compare([*trained("a", {0: 60.0, 1: 62.0, 2: 61.0}), *trained("b", {0: 61.0, 1: 61.0, 2: 62.0})])
    assert "no difference shown at 3 seeds" in found.differences[0].sentence
    one = compare([*trained("a", {0: 60.0}), *trained("b", {0: 70.0})]).differences[0]
    assert one.interval is None and "no difference can be shown without more seeds" in one.sentence
    assert f"{math.sqrt(2) * half_width(60.0, 1000):.2f}" in one.sentence


def test_a_small_test_part_is_warned_of() -> None:
    close = compare([*trained("a", {0: 60.0, 1: 61.0, 2: 62.0}), *trained("b", {0: 61.0, 1: 62.0, 2: 63.05})]).differences[0]
    assert "higher" in close.sentence and "more test pictures are wanted" in close.sentence
    far = compare([*trained("a", {0: 60.0, 1: 61.0, 2: 62.0}), *trained("b", {0: 80.0, 1: 81.0, 2: 82.1})]).differences[0]
    assert "more test pictures" not in far.sentence
    draws = compare([*trained("a", {0: 60.0}, draws=20), *trained("b", {0: 61.0}, draws=20)]).differences[0]
    assert "test pictures" not in draws.sentence  # their interval is over draws of labels


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"protocol_settings": {"steps": 100}}, "steps 200 and 100"),
        ({"train_sha256": "9"}, "train_sha256 1 and 9"),
        ({"test_sha256": "9"}, "test_sha256 2 and 9"),
    ],
)
def test_protocols_and_data_are_not_mixed(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        compare([*trained("a", {0: 60.0}), *trained("b", {0: 61.0}, **changed)])


def test_of_two_judgements_the_shared_one_counts_and_of_equal_ones_the_newest() -> None:
    a = Trained("a-0", "a", 0, (row(50.0, protocol_settings={"steps": 1}), row(60.0), row(61.0)), {})
    found = compare([a, *trained("b", {0: 70.0})])
    assert found.lines[0].cells["a"].mean == 61.0


def test_groups_without_a_figure_are_left_out_and_nothing_judged_is_refused() -> None:
    found = compare([*trained("a", {0: 60.0}), *trained("b", {0: 61.0}, metric="knn20 top-1 %")])
    assert [set(line.cells) for line in found.lines] == [{"a"}, {"b"}]
    with pytest.raises(UsageError, match="judged"):
        compare([Trained("a", "a", 0, (), {})])
    with pytest.raises(UsageError, match="there are: linear top-1 %"):
        compare(trained("a", {0: 60.0}), by="nothing")


def test_best_for_the_cost() -> None:
    groups = [("cheap", 50.0, 1.0), ("waste", 49.0, 2.0), ("good", 70.0, 3.0), ("same", 70.0, 4.0), ("best", 71.0, 9.0)]
    found = compare([one for name, value, flops in groups for one in trained(name, {0: value}, flops)])
    assert found.front == {"linear top-1 %": ("cheap", "good", "best")}


def test_many_differences_are_counted() -> None:
    found = compare([*trained("a", {0: 1.0}), *trained("b", {0: 2.0}), *trained("c", {0: 3.0})])
    assert found.notes == ("2 differences were looked at; intervals are not widened for that",)
