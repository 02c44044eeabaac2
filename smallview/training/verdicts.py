"""How a training does, in plain words: one verdict from what each step said and what the probe pictures show.

A verdict compares a run with itself: what its figures are now with what they were 50 to 150 steps ago. Thresholds are where runs that
were broken on purpose part from those of every preset left alone; tests/training/test_verdicts.py repeats both.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev
from typing import Any

import torch

from smallview.joint_embedding import Method
from smallview.objectives import InfoNCE, Relational
from smallview.schedules import resolve
from smallview.training.probe import Look

EVERY, FIRST = 25, 100
RECENT, SPAN = 10, 150  # steps that say how it is, and steps that are remembered
BEFORE = 50  # steps that lie between now and what it is compared with
FLAT = 0.05  # a spread under which all pictures have one embedding
ONE_LINE = 1.3  # an effective rank under which they lie on one line
FALL, DEEP_FALL = 0.75, 0.5  # of what it was lately, of its peak
GROWTH, DROP, SPIKE = 1.3, 0.85, 8.0  # of the weights; of a rank; deviations of the loss
# under chance there is a little learning; over it there may be none, however noisy
UNDER, OVER, STUCK_AFTER = 0.003, 0.02, 100
RISE, STEEP = 3.0, 100.0  # of the loss, of the gradient
SAME = 0.999  # a similarity from which on a predictor is none
WAITING = 0.3
RANKS, SPREADS = ("feature_rank", "embedding_rank"), ("feature_spread", "embedding_spread")

HEALTHY, SHRINKING, COLLAPSED, STUCK = "healthy", "shrinking", "collapsed", "stuck at ln K"
DIVERGING, TOO_LARGE, WAITS = "diverging", "too large learning rate", "waiting for data"


@dataclass(frozen=True)
class Verdict:
    """name: healthy, shrinking, collapsed, stuck at ln K, diverging, too large learning rate, or waiting for data; the step it was
    given at; finding: the figures that it stands on; causes: the usual ones; advice: one thing to try.
    """

    name: str
    step: int
    finding: str
    causes: str = ""
    advice: str = ""

    def line(self) -> str:
        """One line for the terminal.

        Example:
            >>> Verdict("healthy", 100, "spread 0.91, rank 40.2").line()
            'step 100: healthy (spread 0.91, rank 40.2)'
        """
        usual = f"; usual causes: {self.causes}" if self.causes else ""
        return f"step {self.step:,}: {self.name} ({self.finding}){usual}" + (f"; try {self.advice}" if self.advice else "")


def chance(method: Method, batch_size: int, progress: float = 1.0) -> dict[str, float]:
    """What each contrastive term comes to where nothing is told apart, by name: its value for equal logits.

    ln(K + 1) for plain InfoNCE with K negatives, ln K where the positive is not in the denominator, ln(1 + alpha) with EqCo's margin;
    times the number of pairs where directions are summed. Margins with smoothing depend on `progress`. Asks the term's own formula, so
    that no [B, K] is made however many negatives there are.

    Example:
        >>> from smallview.presets import method
        >>> {name: round(value, 4) for name, value in chance(method("moco_v2"), 256).items()}
        {'contrastive': 8.318}
        >>> chance(method("byol"), 256)
        {}
    """
    online = [v for v, view in enumerate(method.views) if view.seen_by != "target"]
    target = [v for v, view in enumerate(method.views) if view.seen_by != "online"]
    count = method.negatives.count(batch_size, len(target))
    found = {}
    for name, term in method.objective.items():
        loss = term.loss
        if isinstance(loss, Relational):
            found[name] = math.log(count)
        if isinstance(loss, InfoNCE):
            logit = torch.tensor([1.0 / resolve(loss.temperature, progress)], dtype=torch.float64)
            soft = logit if loss.soft(progress) is not None else None  # shares sum to 1
            value = float(loss.head(progress)(logit[:, None], logit + math.log(count), soft, count))
            pairs = sum(loss.same_view or v != other for v in online for other in target)
            found[name] = value * (pairs if loss.directions == "sum" else 1)
    return {name: value for name, value in found.items() if value > 0.0}


class Watch:
    """Remembers the last 150 steps and a few looks, and judges.

    chance: the contrastive terms' values where nothing is told apart, from `chance`. lr: the setting optimizer.lr, for advice that
    names a number; None where it is a schedule. threads: the setting of that name, likewise.

    Example:
        >>> watch = Watch({"contrastive": 5.5})
        >>> for step in range(1, 41):
        ...     watch.step(step, 5.0, {"contrastive": 5.0}, lr=0.1, gradient=1.0, seconds=0.1, waited=0.0)
        >>> watch.judge(Look(40, 0.5, 0.7, 20.0, 0.9, 0.1, 20.0, 0.4, -3.0, 0.8, 1.0, 16.0)) is None  # no verdict before step 100
        True
    """

    def __init__(self, chance: dict[str, float], *, lr: float | None = None, threads: int | None = None) -> None:
        self.chance, self.lr, self.threads = dict(chance), lr, threads
        self.steps: deque[list[float]] = deque(maxlen=SPAN)  # [loss, gradient, seconds, waited] each
        self.terms: dict[str, deque[float]] = {name: deque(maxlen=STUCK_AFTER) for name in chance}
        self.looks: deque[dict[str, float]] = deque(maxlen=SPAN // EVERY + 3)
        self.peaks: dict[str, float] = {}
        self.not_finite = 0  # steps among the last ones whose numbers were not
        self.name = HEALTHY

    def step(
        self, step: int, loss: float, losses: dict[str, float], lr: float, gradient: float, seconds: float, waited: float
    ) -> None:
        """Take in what a step said; a few microseconds."""
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            self.not_finite = BEFORE
            return
        self.not_finite = max(0, self.not_finite - 1)
        self.steps.append([loss, gradient, seconds, waited])
        for name, values in self.terms.items():
            if name in losses:
                values.append(losses[name])

    def judge(self, look: Look) -> Verdict | None:
        """The verdict at this look, None before step 100; the gravest that holds, and waiting for data after all others."""
        figures = look.as_dict()
        earlier = self._earlier(look.step)
        if not self.looks or look.step - self.looks[-1]["step"] >= EVERY or look.step < self.looks[-1]["step"]:
            self.looks.append(figures)
        verdict = None
        if look.step >= FIRST:
            rules: Sequence[Callable[[dict[str, float], dict[str, float]], tuple[str, str, str, str] | None]] = (
                self._not_finite,
                self._stuck,
                self._collapsed,
                self._too_large,
                self._diverging,
                self._shrinking,
                self._waiting,
            )
            said = next((said for rule in rules if (said := rule(figures, earlier)) is not None), None)
            name, *rest = said or (HEALTHY, f"spread {look.embedding_spread:.2f}, rank {look.embedding_rank:.1f}")
            self.name = name
            verdict = Verdict(name, look.step, *rest)
        if look.step >= BEFORE:
            for name in (*RANKS, *SPREADS):
                if math.isfinite(figures[name]):
                    self.peaks[name] = max(figures[name], self.peaks.get(name, 0.0))
        return verdict

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to judge as an uninterrupted one does; plain values for JSON."""
        return {
            "steps": [list(values) for values in self.steps],
            "terms": {name: list(values) for name, values in self.terms.items()},
            "looks": list(self.looks),
            "peaks": dict(self.peaks),
            "not_finite": self.not_finite,
            "name": self.name,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state; an empty one, of a checkpoint without, leaves all as it is."""
        self.steps.extend(list(values) for values in state.get("steps", []))
        for name, values in state.get("terms", {}).items():
            if name in self.terms:
                self.terms[name].extend(values)
        self.looks.extend(dict(figures) for figures in state.get("looks", []))
        self.peaks.update(state.get("peaks", {}))
        self.not_finite = int(state.get("not_finite", 0))
        self.name = str(state.get("name", HEALTHY))

    def _earlier(self, step: int) -> dict[str, float]:
        """The median of each figure over the looks that lie 50 steps back and more, none of the first 50 steps."""
        back = [figures for figures in self.looks if BEFORE <= figures["step"] <= step - BEFORE][-(SPAN // EVERY) :]
        return {name: median(figures[name] for figures in back) for name in back[0]} if back else {}

    def _lower(self, factor: float = 3.0) -> str:
        number = f"={self.lr / factor:.2g}" if self.lr else f", a {'third' if factor == 3.0 else 'tenth'} of it"
        return f"--fresh --set optimizer.lr{number}"

    def _not_finite(self, now: dict[str, float], earlier: dict[str, float]) -> tuple[str, str, str, str] | None:
        if self.not_finite == 0 and all(math.isfinite(value) for value in now.values()):
            return None
        causes = "a learning rate too large, no warm-up, bfloat16"
        return DIVERGING, "the loss or the embeddings are not finite", causes, self._lower(10.0)

    def _stuck(self, now: dict[str, float], earlier: dict[str, float]) -> tuple[str, str, str, str] | None:
        """A contrastive term that stays where it is when nothing is told apart. A collapse ends there too, and keeps its name."""
        if self.name == COLLAPSED:
            return None
        for name, value in self.chance.items():
            seen = list(self.terms[name])
            if len(seen) < STUCK_AFTER:
                continue
            level, half = fmean(seen), len(seen) // 2
            falls = fmean(seen[:half]) - fmean(seen[half:]) > UNDER * value
            if (1.0 - UNDER) * value <= level <= (1.0 + OVER) * value and not falls:
                return (
                    STUCK,
                    f"{name} {level:.3f} over {len(seen)} steps; {value:.3f} is chance",
                    "negatives that hold the positive, a temperature too high, views without anything in common, a learning rate "
                    "too small",
                    f"--fresh --set optimizer.lr={3.0 * self.lr:.2g}" if self.lr else "--fresh --method simclr",
                )
        return None

    def _collapsed(self, now: dict[str, float], earlier: dict[str, float]) -> tuple[str, str, str, str] | None:
        flat = min(SPREADS, key=lambda name: now[name])
        if now[flat] >= FLAT and now["embedding_rank"] >= ONE_LINE:
            return None
        what = flat.split("_")[0] if now[flat] < FLAT else "embedding"
        return (
            COLLAPSED,
            f"all pictures have nearly one {what}: spread {now[flat]:.3f}, effective rank {now[f'{what}_rank']:.1f}",
            "a learning rate too large, no predictor where there are no negatives, views that have too little in common",
            self._lower(),
        )

    def _too_large(self, now: dict[str, float], earlier: dict[str, float]) -> tuple[str, str, str, str] | None:
        """Weights that are overwritten, with a loss that jumps or directions that are lost."""
        if not earlier or now["weights"] <= GROWTH * earlier["weights"]:
            return None
        lost = min(now[name] / max(earlier[name], 1e-9) for name in RANKS)
        before, lately = self._losses()
        jumps = len(before) >= RECENT and max(lately) > fmean(before) + SPIKE * pstdev(before)
        if lost >= DROP and not jumps:
            return None
        what = f"the effective rank fell to {lost:.0%}" if lost < DROP else "the loss jumps"
        return (
            TOO_LARGE,
            f"the weights grew {now['weights'] / earlier['weights']:.1f}-fold in about 100 steps and {what}",
            "a learning rate made for larger batches or another optimizer, no warm-up",
            self._lower(10.0),
        )

    def _diverging(self, now: dict[str, float], earlier: dict[str, float]) -> tuple[str, str, str, str] | None:
        before, lately = self._losses()
        if len(before) < RECENT:
            return None
        level, top = fmean(lately[-RECENT:]), max(abs(x) for x in before)
        gradients = [values[1] for values in self.steps]
        steep = median(gradients[-RECENT:]) / max(median(gradients[: len(before)]), 1e-12)
        if level <= RISE * top and steep <= STEEP:
            return None
        what = (
            f"the loss is {level:.3g}, {top:.3g} at most before"
            if level > RISE * top
            else f"the gradient grew {steep:.0f}-fold"
        )
        return DIVERGING, what, "a learning rate too large, no warm-up, a broken picture or view", self._lower()

    def _shrinking(self, now: dict[str, float], earlier: dict[str, float]) -> tuple[str, str, str, str] | None:
        if not earlier:
            return None
        if now["prediction"] >= SAME > earlier["prediction"]:
            return (
                SHRINKING,
                f"the predictor changes nothing any more: similarity {now['prediction']:.3f}, {earlier['prediction']:.2f} before",
                "a predictor that was removed or is not called; without negatives the embeddings follow",
                "--fresh, or --method simclr",
            )
        for spread, rank in zip(SPREADS, RANKS, strict=True):
            fallen = [name for name in (spread, rank) if self._fell(name, now, earlier)]
            # where directions are lost while pictures move apart, a contrast is learned: so a queue begins that was random
            if fallen and now[spread] <= earlier[spread]:
                name, last, peak = fallen[0], earlier[fallen[0]], self.peaks.get(fallen[0], 0.0)
                what = name.replace("_", " ").replace("rank", "effective rank")
                return (
                    SHRINKING,
                    f"{what} {now[name]:.3g}, {last:.3g} about 100 steps ago, {peak:.3g} at best",
                    "no predictor or a poor one where there are no negatives, a learning rate too large, weight decay too strong",
                    self._lower(),
                )
        return None

    def _fell(self, name: str, now: dict[str, float], earlier: dict[str, float]) -> bool:
        last, peak = earlier[name], self.peaks.get(name, 0.0)
        return now[name] < FALL * last or (now[name] < DEEP_FALL * peak and now[name] < 0.95 * last)

    def _waiting(self, now: dict[str, float], earlier: dict[str, float]) -> tuple[str, str, str, str] | None:
        lately = list(self.steps)[-STUCK_AFTER:]
        seconds, waited = (math.fsum(values[i] for values in lately) for i in (2, 3))
        if seconds <= 0.0 or waited <= WAITING * seconds:
            return None
        more = f"--threads {2 * self.threads}" if self.threads else "more --threads"
        return WAITS, f"{waited / seconds:.0%} of the time", "large pictures, costly views, few cores", more

    def _losses(self) -> tuple[list[float], list[float]]:
        """(those of 50 steps back and more, those since)."""
        losses = [values[0] for values in self.steps]
        return losses[:-BEFORE], losses[-BEFORE:]
