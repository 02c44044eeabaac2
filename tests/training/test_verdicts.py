"""Verdicts on told stories: every rule hears its own and no other, and no rule is idle. Real trainings: test_watched_runs.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from smallview.joint_embedding import Method, Term
from smallview.objectives import Debiased, Decoupled, EqCo, Fixed, InfoNCE, NearestSmoothing, Queue, UniformSmoothing
from smallview.presets import PRESETS, method, preset
from smallview.records import Embedded, Embeddings
from smallview.settings import override
from smallview.training import rules, verdicts
from smallview.training.probe import Look
from smallview.training.verdicts import Verdict, Watch, chance

FINE = {
    **{"feature_spread": 0.5, "feature_cosine": 0.7, "feature_rank": 20.0},
    **{"embedding_spread": 0.9, "embedding_cosine": 0.1, "embedding_rank": 20.0},
    **{"alignment": 0.4, "uniformity": -3.0, "retrieval": 0.8, "prediction": 0.6, "weights": 16.0},
}
LN_K = math.log(257)
Said = dict[str, Any]  # what a step says otherwise than a fine one, or a look


def tell(
    steps: int = 400,
    saying: Callable[[int], Said] = lambda step: {},
    seeing: Callable[[int], Said] = lambda step: {},
    watch: Watch | None = None,
    start: int = 0,
    every: int = 25,
) -> list[Verdict | None]:
    """The verdicts on a training that is fine but for what `saying` and `seeing` change: the loss falls, with some noise."""
    watch = watch or Watch({"contrastive": LN_K}, lr=0.06, threads=2)
    heard = []
    for step in range(start + 1, steps + 1):
        noise = 0.02 * math.sin(2.3 * step)
        fine = {"loss": 4.0 + noise - 0.001 * step, "lr": 0.06, "gradient": 10.0 + 5 * noise, "seconds": 0.1, "waited": 0.01}
        said = fine | saying(step)
        losses = said.pop("losses", {"contrastive": said["loss"]})
        watch.step(step, losses=losses, **said)
        if step % every == 0:
            heard.append(watch.judge(Look(step, **(FINE | seeing(step)))))
    return heard


def after(step: int, **changed: float) -> Callable[[int], Said]:
    return lambda now: changed if now > step else {}


# what happens after step 200 -> (the rule that hears it, its verdict, what steps say, what looks see)
STORIES: dict[str, tuple[rules.Rule, str, Callable[[int], Said], Callable[[int], Said]]] = {
    "nan loss": (rules.not_finite, "diverging", after(200, loss=math.nan), after(999)),
    "nan gradient": (rules.not_finite, "diverging", after(200, gradient=math.inf), after(999)),
    "nan weights": (rules.not_finite, "diverging", after(999), after(200, embedding_rank=math.nan)),
    "at chance": (rules.stuck, "stuck at ln K", after(200, loss=LN_K + 0.001), after(999)),
    "one embedding": (rules.collapsed, "collapsed", after(999), after(200, embedding_spread=0.01, embedding_rank=18.0)),
    "one feature": (rules.collapsed, "collapsed", after(999), after(200, feature_spread=0.01)),
    "one line": (rules.collapsed, "collapsed", after(999), after(200, embedding_rank=1.1)),
    "overwritten": (rules.too_large, "too large learning rate", after(999), after(200, weights=60.0, feature_rank=16.0)),
    "loss jumps": (
        *(rules.too_large, "too large learning rate"),
        *(lambda step: {"loss": 9.0} if step == 215 else {}, after(200, weights=60.0)),
    ),
    "runaway": (rules.diverging, "diverging", lambda step: {"loss": 4.0 * 1.05 ** max(0, step - 200)}, after(999)),
    "steep": (rules.diverging, "diverging", after(200, gradient=5e4), after(999)),
    "spread falls": (rules.shrinking, "shrinking", after(999), lambda step: {"embedding_spread": 0.9 * 0.99 ** max(0, step - 200)}),
    "rank falls": (rules.shrinking, "shrinking", after(999), lambda step: {"feature_rank": 20.0 * 0.995 ** max(0, step - 200)}),
    "predictor gone": (rules.shrinking, "shrinking", after(999), after(200, prediction=1.0)),
    "views are late": (rules.waiting, "waiting for data", after(200, waited=0.05), after(999)),
}  # fmt: skip


def test_a_fine_run_is_healthy_from_step_100_on_and_nothing_is_said_before() -> None:
    heard = tell()
    assert heard[:3] == [None, None, None]
    assert {verdict.name for verdict in heard[3:] if verdict} == {"healthy"} and len(heard) == 16
    assert heard[3] is not None and heard[3].line() == "step 100: healthy (spread 0.90, rank 20.0)"


@pytest.mark.parametrize("story", STORIES)
def test_each_story_gets_its_verdict_and_only_by_its_rule(story: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, name, saying, seeing = STORIES[story]
    heard = [verdict for verdict in tell(400, saying, seeing) if verdict]
    assert {verdict.name for verdict in heard if verdict.step <= 200} == {"healthy"}
    named = [verdict for verdict in heard if verdict.name == name]
    assert named and {verdict.name for verdict in heard} <= {"healthy", name}
    patience = 100 if rule in (rules.stuck, rules.shrinking, rules.diverging) else 75 if rule is rules.waiting else 25
    assert named[0].step <= 200 + patience + 25 * (rule is rules.shrinking)
    line = named[0].line()
    assert "\n" not in line and f"step {named[0].step}: {name} (" in line and "usual causes: " in line and "; try " in line
    assert any(figure.isdigit() for figure in named[0].finding) or story.startswith("nan")
    monkeypatch.setattr(verdicts, "RULES", tuple(other for other in rules.RULES if other is not rule))
    assert name not in {verdict.name for verdict in tell(400, saying, seeing) if verdict}


def test_every_rule_has_a_story() -> None:
    assert {rule for rule, *_ in STORIES.values()} == set(rules.RULES)


@pytest.mark.parametrize(
    ("saying", "seeing"),
    [
        (lambda step: {"loss": 3.0 + 2.4 * (1 - math.exp(-step / 150))}, after(999)),  # a queue that fills
        (lambda step: {"loss": LN_K * (1.02 - 0.0002 * step)}, after(999)),  # late, but on its way
        (lambda step: {"loss": 9.0} if step == 215 else {}, after(999)),  # one bad batch
        (after(999), lambda step: {"weights": 16.0 + 0.1 * step}),  # weights that grow with all in order
        (after(999), lambda step: {"embedding_rank": 40.0 * 0.99**step + 10, "embedding_spread": 0.3 + 0.001 * step}),
        # a queue of old keys: closer together, in more directions
        (after(999), lambda step: {"embedding_spread": 0.9 - 0.3 * min(1.0, step / 200), "embedding_rank": 18.0 + step / 100}),
        (lambda step: {"waited": 0.09} if step % 10 == 0 else {}, after(999)),
    ],
)
def test_what_only_looks_bad_is_healthy(saying: Callable[[int], Said], seeing: Callable[[int], Said]) -> None:
    assert {verdict.name for verdict in tell(400, saying, seeing) if verdict} == {"healthy"}


def test_graver_verdicts_come_first_and_waiting_last() -> None:
    late = [verdict for verdict in tell(300, after(0, waited=0.09), after(200, embedding_spread=0.01)) if verdict]
    assert [verdict.name for verdict in late] == ["waiting for data"] * 5 + ["collapsed"] * 4
    # a collapse of a contrastive method ends at ln K, and is still a collapse; what never left ln K is stuck
    fell = tell(400, after(200, loss=LN_K), after(200, embedding_spread=0.0, embedding_rank=1.0))
    assert {verdict.name for verdict in fell if verdict and verdict.step > 200} == {"collapsed"}
    never = tell(400, lambda step: {"loss": LN_K}, after(50, embedding_spread=0.0, embedding_rank=1.0))
    assert {verdict.name for verdict in never if verdict} == {"stuck at ln K"}


def test_shrinking_is_said_until_it_is_mended() -> None:
    def seeing(step: int) -> Said:  # fast, slow, and back again
        return {"embedding_spread": 0.9 - 0.006 * max(0, min(step, 300) - 200) + 0.01 * max(0, min(step, 560) - 520)}

    heard = [verdict.name for verdict in tell(700, seeing=seeing) if verdict]
    first, last = heard.index("shrinking"), len(heard) - heard[::-1].index("shrinking")
    assert set(heard[first:last]) == {"shrinking"} and last - first >= 8 and heard[-1] == "healthy"


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("stop", [60, 130, 225, 300])
def test_a_resumed_run_judges_as_an_uninterrupted_one(story: str, stop: int) -> None:
    _, _, saying, seeing = STORIES[story]
    whole = tell(400, saying, seeing)
    first = Watch({"contrastive": LN_K}, lr=0.06, threads=2)
    begun = tell(stop, saying, seeing, first)
    second = Watch({"contrastive": LN_K}, lr=0.06, threads=2)
    second.load(json.loads(json.dumps(first.state())))
    assert begun + tell(400, saying, seeing, second, start=stop) == whole


def test_each_contrastive_term_is_measured_against_chance() -> None:
    watch = Watch({"contrastive": LN_K})
    assert watch.against_chance() == {}
    for loss in (LN_K, 0.5 * LN_K):
        watch.step(1, 3.0, {"contrastive": loss, "other": 9.0}, lr=0.1, gradient=1.0, seconds=0.1, waited=0.0)
    assert watch.against_chance() == pytest.approx({"contrastive": 0.5})
    again = Watch({"contrastive": LN_K})
    again.load(json.loads(json.dumps(watch.state())))
    assert again.against_chance() == watch.against_chance()


def test_a_checkpoint_without_a_watch_begins_one() -> None:
    watch = Watch({"contrastive": LN_K})
    watch.load({})
    assert watch.state() == Watch({"contrastive": LN_K}).state()
    assert {v.name for v in tell(400, watch=watch, start=200) if v} == {"healthy"}


def test_weights_that_are_overwritten_from_the_start_are_seen_where_step_0_was_looked_at() -> None:
    def told(weights: float, begin: bool = True) -> list[str]:
        watch = Watch({"contrastive": LN_K})
        if begin:
            assert watch.judge(Look(0, **FINE)) is None
        first = tell(150, seeing=lambda step: {"weights": weights}, watch=watch)
        second = Watch({"contrastive": LN_K})
        second.load(json.loads(json.dumps(watch.state())))
        heard = first + tell(400, seeing=lambda step: {"weights": weights if step < 300 else 20.0}, watch=second, start=150)
        return [verdict.name for verdict in heard if verdict]

    assert told(60.0) == ["too large learning rate"] * 8 + ["healthy"] * 5
    assert set(told(24.0)) == set(told(60.0, begin=False)) == {"healthy"}


@pytest.mark.parametrize("every", [1, 7, 50, 100, 200])
def test_verdicts_do_not_hang_on_how_often_is_looked(every: int) -> None:
    _, name, saying, seeing = STORIES["overwritten"]
    heard = [verdict for verdict in tell(400, saying, seeing, every=every) if verdict]
    assert heard[0].step >= 100 and {v.name for v in heard if v.step <= 200} <= {"healthy"}
    assert all(verdict.name == name for verdict in heard if 200 < verdict.step <= 249)
    assert any(verdict.name == name for verdict in heard) or every == 200
    watch = Watch({"contrastive": LN_K})
    tell(400, watch=watch, every=every)
    assert len(json.dumps(watch.state())) < 20_000


def test_advice_names_settings_that_exist_with_numbers_from_those_in_use() -> None:
    given = {story: next(v for v in tell(400, *parts[2:]) if v and v.name != "healthy") for story, parts in STORIES.items()}
    said = {verdict.advice for verdict in given.values()}
    assert "--fresh --set optimizer.lr=0.02" in said and "--fresh --set optimizer.lr=0.006" in said
    assert given["at chance"].advice == "--fresh --set optimizer.lr=0.18" and given["views are late"].advice == "--threads 4"
    assert override(preset("simclr"), "optimizer.lr", "0.02").optimizer.lr == 0.02
    assert given["predictor gone"].advice == "--fresh --method simclr" and "simclr" in PRESETS
    unknown = Watch({"contrastive": LN_K})
    lines = [v.advice for v in tell(400, STORIES["at chance"][2], watch=unknown) if v and v.name != "healthy"]
    assert lines[0] == "--fresh with optimizer.lr three times it"


def constant_loss(chosen: Method, name: str, batch: int = 6) -> float:
    """The term on embeddings that are all one vector, by the method's own negatives."""
    heads = [view.seen_by for view in chosen.views]
    online = tuple(v for v, seen_by in enumerate(heads) if seen_by != "target")
    target = tuple(v for v, seen_by in enumerate(heads) if seen_by != "online")
    same = torch.ones(1, 1, 3, dtype=torch.float64)
    seen = Embedded(same.expand(len(online), batch, 3), same.expand(len(target), batch, 3), online, target, same[0])
    if isinstance(chosen.negatives, Queue):
        state = {"keys": same[0].expand(chosen.negatives.size, 3), "position": torch.zeros((), dtype=torch.int64)}
    else:
        state = {}
    candidates, _ = chosen.negatives.draw(state, seen, (0, 0))
    embeddings = Embeddings(seen.online, seen.target, candidates, online, target)
    return float(chosen.objective[name].loss(embeddings, 1.0))


def small(chosen: Method) -> Method:
    return replace(chosen, negatives=Queue(30)) if isinstance(chosen.negatives, Queue) else chosen


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_chance_is_the_term_where_nothing_is_told_apart(name: str) -> None:
    chosen = small(method(name))
    found = chance(chosen, 6)
    contrastive = [term for term in chosen.objective if term in ("contrastive", "relation")]
    assert sorted(found) == contrastive
    for term, value in found.items():
        assert value == pytest.approx(constant_loss(chosen, term), rel=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        *(InfoNCE(0.5, margin=EqCo(100), soft_targets=UniformSmoothing(0.3)), InfoNCE(0.1, denominator=Decoupled(), directions="sum")),
        *(InfoNCE(0.3, denominator=Debiased(0.2)), InfoNCE(0.2, margin=EqCo(7), denominator=Debiased(0.1), directions="sum")),
        *(InfoNCE(0.2, same_view=True, directions="sum"), InfoNCE(0.07, soft_targets=NearestSmoothing(0.2, nearest=3))),
    ],
)  # fmt: skip
def test_chance_holds_for_margins_smoothing_and_other_denominators(loss: InfoNCE) -> None:
    for negatives in (method("simclr").negatives, method("simo").negatives, Queue(30), Fixed()):
        if isinstance(negatives, Fixed) and isinstance(loss.soft_targets, NearestSmoothing):
            continue
        chosen = replace(method("simclr"), negatives=negatives, objective={"x": Term(1.0, loss)})
        assert chance(chosen, 6).get("x", 0.0) == pytest.approx(max(0.0, constant_loss(chosen, "x")), abs=1e-6)


def test_chance_of_the_largest_queue_makes_no_matrix() -> None:
    chosen = replace(method("moco_v2"), negatives=Queue(2**22))
    assert chance(chosen, 4096)["contrastive"] == pytest.approx(math.log(2**22 + 1))


BYOL_FROM_ITS_START = (
    # looks at steps 25 to 150 of BYOL with its own settings on CIFAR-10, two seeds: spread, rank, retrieval
    (
        (0.641, 22.0, 0.047),
        (0.527, 15.0, 0.055),
        (0.56, 13.2, 0.039),
        (0.333, 18.4, 0.086),
        (0.311, 20.6, 0.125),
        (0.284, 22.1, 0.094),
    ),
    (
        (0.654, 19.2, 0.078),
        (0.673, 23.4, 0.102),
        (0.673, 14.3, 0.055),
        (0.622, 21.0, 0.078),
        (0.5, 28.4, 0.078),
        (0.498, 29.3, 0.094),
    ),
)


@pytest.mark.parametrize("seen", BYOL_FROM_ITS_START)
def test_embeddings_that_draw_together_while_they_learn_are_healthy(seen: tuple[tuple[float, float, float], ...]) -> None:
    def look(step: int, told: bool = True) -> Said:
        spread, rank, retrieval = seen[step // 25 - 1]
        return {"embedding_spread": spread, "embedding_rank": rank, "retrieval": retrieval if told else 0.05}

    healthy = tell(150, seeing=look, watch=Watch({}, lr=1.0, threads=2))
    assert {verdict.name for verdict in healthy if verdict} <= {"healthy"}
    # the same spread without anything gained is what the verdict is for
    lost = tell(150, seeing=lambda step: look(step, told=False) | {"embedding_rank": 18.0}, watch=Watch({}, lr=1.0, threads=2))
    assert "shrinking" in {verdict.name for verdict in lost if verdict}
