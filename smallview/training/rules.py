"""The rules of the watch: each looks at what a run remembers of itself and says what is wrong with it, or nothing.

A run is compared with itself: its figures now with the median of those 50 to 200 steps ago, its last losses with those before. The
thresholds are where runs that were broken on purpose part from those of every preset left alone; tests/training/test_watched_runs.py
repeats both.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean, median, pstdev

EVERY, FIRST = 25, 100
RECENT, SPAN = 10, 150  # steps that say how it is, and steps that are remembered
BEFORE = 50  # steps that lie between now and what it is compared with
FLAT = 0.05  # a spread under which all pictures have one embedding
ONE_LINE = 1.3  # an effective rank under which they lie on one line
FALL, DEEP_FALL, STEADY = 0.75, 0.5, 0.95  # of what it was lately, of its peak; what still falls
BETTER, MORE = 1.25, 1.1  # retrieval, and rank, where pictures are told apart better than they were
GROWTH, DROP, SPIKE = 1.3, 0.85, 8.0  # of the weights; of a rank; standard deviations of the loss
START, START_GROWTH = 200, 3.0  # the steps of the beginning, and what no weights grow by in it
# under chance there is a little learning; over it there is none, however noisy
UNDER, OVER, STUCK_AFTER = 0.003, 0.05, 100
RISE, STEEP = 3.0, 100.0  # of the loss, of the gradient
SAME = 0.999  # a similarity from which on a predictor is none
WAITING = 0.3
RANKS, SPREADS = ("feature_rank", "embedding_rank"), ("feature_spread", "embedding_spread")

HEALTHY, SHRINKING, COLLAPSED, STUCK = "healthy", "shrinking", "collapsed", "stuck at ln K"
DIVERGING, TOO_LARGE, WAITS = "diverging", "too large learning rate", "waiting for data"

Figures = dict[str, float]  # of a look, by name


@dataclass
class Memory:
    """What a run remembers of itself.

    chance: see verdicts.chance. steps: (loss, gradient, seconds, waited) of the last 150. terms: the last 100 values of each term in
    `chance`. looks: at most nine, 25 steps apart or more. peaks: the best ranks and spreads since `settled`. not_finite: counts down
    after a step whose numbers were not. began: the weights' norm at step 0, where a look was taken then. name: the last verdict's.
    """

    chance: dict[str, float]
    steps: deque[list[float]] = field(default_factory=lambda: deque(maxlen=SPAN))
    terms: dict[str, deque[float]] = field(default_factory=dict)
    looks: deque[Figures] = field(default_factory=lambda: deque(maxlen=SPAN // EVERY + 3))
    peaks: Figures = field(default_factory=dict)
    not_finite: int = 0
    began: float | None = None
    name: str = HEALTHY

    @property
    def settled(self) -> int:
        """The step from which on ranks and spreads mean something: later with negatives, whose queue begins at random."""
        return FIRST if self.chance else BEFORE

    def earlier(self, step: float, begin: int = BEFORE) -> Figures:
        """The median of each figure over the looks that lie 50 steps back and more, none of them before `begin`; or nothing."""
        back = [look for look in self.looks if begin <= look["step"] <= step - BEFORE][-(SPAN // EVERY) :]
        return {name: median(look[name] for look in back) for name in back[0]} if back else {}

    def losses(self) -> tuple[list[float], list[float]]:
        """(those of 50 steps back and more, those since)."""
        values = [step[0] for step in self.steps]
        return values[:-BEFORE], values[-BEFORE:]


@dataclass(frozen=True)
class Finding:
    """The verdict's name, the figures that it stands on, the usual causes, and what to try: the kind that verdicts.Watch puts into words."""

    name: str
    figures: str
    causes: str
    advice: str


def not_finite(memory: Memory, now: Figures, earlier: Figures) -> Finding | None:
    """Numbers that are none, in a step or in a look."""
    if memory.not_finite == 0 and all(math.isfinite(value) for value in now.values()):
        return None
    causes = "a learning rate too large, no warm-up, bfloat16"
    return Finding(DIVERGING, "the loss or the embeddings are not finite", causes, "far lower")


def stuck(memory: Memory, now: Figures, earlier: Figures) -> Finding | None:
    """A contrastive term that stays where it is when nothing is told apart. A collapse ends there too, and keeps its name."""
    if memory.name == COLLAPSED:
        return None
    for name, value in memory.chance.items():
        seen = list(memory.terms[name])
        if len(seen) < STUCK_AFTER:
            continue
        level, half = fmean(seen), len(seen) // 2
        falls = fmean(seen[:half]) - fmean(seen[half:]) > UNDER * value
        if (1.0 - UNDER) * value <= level <= (1.0 + OVER) * value and not falls:
            causes = "negatives that hold the positive, a temperature too high, views with nothing in common, too low a learning rate"
            return Finding(STUCK, f"{name} {level:.3f} over {len(seen)} steps; {value:.3f} is chance", causes, "higher")
    return None


def collapsed(memory: Memory, now: Figures, earlier: Figures) -> Finding | None:
    """One point for all pictures, or one line."""
    flat = min(SPREADS, key=lambda name: now[name])
    if now[flat] >= FLAT and now["embedding_rank"] >= ONE_LINE:
        return None
    what = flat.split("_")[0] if now[flat] < FLAT else "embedding"
    return Finding(
        COLLAPSED,
        f"all pictures have nearly one {what}: spread {now[f'{what}_spread']:.3f}, effective rank {now[f'{what}_rank']:.1f}",
        "a learning rate too large, no predictor where there are no negatives, views with too little in common",
        "lower",
    )


def too_large(memory: Memory, now: Figures, earlier: Figures) -> Finding | None:
    """Weights that are overwritten: with a loss that jumps or directions that are lost, or from the beginning on."""
    causes = "a learning rate made for larger batches or another optimizer, no warm-up"
    begins = now["step"] <= START or memory.name == TOO_LARGE  # said until it is mended
    if memory.began is not None and begins and now["weights"] > START_GROWTH * memory.began:
        return Finding(
            TOO_LARGE, f"the weights grew {now['weights'] / memory.began:.1f}-fold since the start", causes, "far lower"
        )
    if not earlier or now["weights"] <= GROWTH * earlier["weights"]:
        return None
    kept = min(now[name] / max(earlier[name], 1e-9) for name in RANKS)
    before, lately = memory.losses()
    jumps = len(before) >= RECENT and max(lately) > fmean(before) + SPIKE * pstdev(before)
    if kept >= DROP and not jumps:
        return None
    what = f"the effective rank fell to {kept:.0%}" if kept < DROP else "the loss jumps"
    return Finding(
        TOO_LARGE,
        f"the weights grew {now['weights'] / earlier['weights']:.1f}-fold lately and {what}",
        causes,
        "far lower",
    )


def diverging(memory: Memory, now: Figures, earlier: Figures) -> Finding | None:
    """A loss three times over anything before, or a gradient a hundred times."""
    before, lately = memory.losses()
    if len(before) < RECENT:
        return None
    level, top = fmean(lately[-RECENT:]), max(abs(x) for x in before)
    gradients = [step[1] for step in memory.steps]
    steep = median(gradients[-RECENT:]) / max(median(gradients[: len(before)]), 1e-12)
    if level <= RISE * top and steep <= STEEP:
        return None
    what = f"the loss is {level:.3g}, {top:.3g} at most before" if level > RISE * top else f"the gradient grew {steep:.0f}-fold"
    return Finding(DIVERGING, what, "a learning rate too large, no warm-up, a broken picture or view", "lower")


def shrinking(memory: Memory, now: Figures, earlier: Figures) -> Finding | None:
    """A spread or a rank that falls; a predictor that is gone, before the embeddings show it."""
    earlier = memory.earlier(now["step"], memory.settled)
    if not earlier:
        return None
    if now["prediction"] >= SAME > earlier["prediction"]:
        figures = (
            f"the predictor changes nothing any more: similarity {now['prediction']:.3f}, {earlier['prediction']:.2f} before"
        )
        causes = "a predictor that was removed or is not called; without negatives the embeddings follow"
        return Finding(SHRINKING, figures, causes, "contrast")
    for spread, rank in zip(SPREADS, RANKS, strict=True):
        fallen = [name for name in (spread, rank) if _fell(memory, name, now, earlier)]
        # a predictor's target draws all pictures to one side while it learns to tell them apart: BYOL on photographs does, from its start
        learns = fallen == [spread] and _tells_apart(now, earlier, rank)
        # where directions are lost while pictures move apart, a contrast is learned: so begins a queue that was random
        if fallen and now[spread] <= earlier[spread] and not learns:
            name = fallen[0]
            what = name.replace("_", " ").replace("rank", "effective rank")
            figures = f"{what} {now[name]:.3g}, {earlier[name]:.3g} before, {memory.peaks.get(name, 0.0):.3g} at best"
            causes = "no predictor or a poor one where there are no negatives, too large a learning rate or weight decay"
            return Finding(SHRINKING, figures, causes, "lower")
    return None


def _tells_apart(now: Figures, earlier: Figures, rank: str) -> bool:
    """Pictures are found again better than before, or as well in more directions."""
    found, before = now["retrieval"], earlier["retrieval"]
    more = now[rank] >= MORE * earlier[rank] and found >= STEADY * before
    return before > 0.0 and (more or (found >= BETTER * before and now[rank] >= STEADY * earlier[rank]))


def _fell(memory: Memory, name: str, now: Figures, earlier: Figures) -> bool:
    last, peak = earlier[name], memory.peaks.get(name, 0.0)
    # against a queue of old keys embeddings may draw together while they learn, as long as their directions stay
    fall = DEEP_FALL if memory.chance and name in SPREADS else FALL
    if memory.name == SHRINKING:  # said until it is mended, not while the pace happens to be high
        return now[name] < FALL * peak and STEADY * now[name] < last
    return now[name] < fall * last or (now[name] < DEEP_FALL * peak and now[name] < STEADY * last)


def waiting(memory: Memory, now: Figures, earlier: Figures) -> Finding | None:
    """Training that waits for its views."""
    lately = list(memory.steps)[-STUCK_AFTER:]
    seconds, waited = (math.fsum(step[i] for step in lately) for i in (2, 3))
    if seconds <= 0.0 or waited <= WAITING * seconds:
        return None
    return Finding(WAITS, f"{waited / seconds:.0%} of the time", "large pictures, costly views, few cores", "threads")


Rule = Callable[[Memory, Figures, Figures], Finding | None]
# the gravest first; what is at chance from its start may look collapsed, and chance says more
RULES: tuple[Rule, ...] = (not_finite, stuck, collapsed, too_large, diverging, shrinking, waiting)
