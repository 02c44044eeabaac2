"""How a training does, in plain words: one verdict from what each step said and what the probe pictures show."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from smallview.joint_embedding import Method
from smallview.objectives import InfoNCE, Relational
from smallview.schedules import resolve
from smallview.training.probe import Look
from smallview.training.rules import BEFORE, EVERY, FIRST, HEALTHY, RANKS, RULES, SPREADS, STUCK_AFTER, Finding, Memory

# advice -> (factor of the learning rate in it, words where that is no number)
RATES = {"lower": (1 / 3, "a third of it"), "far lower": (1 / 10, "a tenth of it"), "higher": (3.0, "three times it")}


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
    times the number of pairs where directions are summed. Margins with smoothing depend on `progress`. Asks the term's own formula for
    a single query, so that no [B, K] is made however many negatives there are.

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
            soft = logit if loss.soft(progress) is not None else None  # the shares of its targets sum to 1
            value = float(loss.head(progress)(logit[:, None], logit + math.log(count), soft, count))
            pairs = sum(loss.same_view or v != other for v in online for other in target)
            found[name] = value * (pairs if loss.directions == "sum" else 1)
    return {name: value for name, value in found.items() if value > 0.0}


class Watch:
    """Remembers the last 150 steps and a few looks, and judges.

    chance: the contrastive terms' values where nothing is told apart, from `chance`. lr: the setting optimizer.lr, for advice that
    names a number; None where it is a schedule. threads: the setting of that name, likewise.

    Example:
        >>> watch = Watch({"contrastive": 5.5}, lr=0.01)
        >>> for step in range(1, 101):
        ...     watch.step(step, 5.5, {"contrastive": 5.5}, lr=0.1, gradient=1.0, seconds=0.1, waited=0.0)
        >>> figures = dict(feature_spread=0.5, feature_cosine=0.7, feature_rank=20.0, embedding_spread=0.9, embedding_cosine=0.1)
        >>> figures |= dict(embedding_rank=20.0, alignment=0.4, uniformity=-3.0, retrieval=0.8, prediction=1.0, weights=16.0)
        >>> watch.judge(Look(99, **figures)) is None, watch.judge(Look(100, **figures)).name
        (True, 'stuck at ln K')
    """

    def __init__(self, chance: dict[str, float], *, lr: float | None = None, threads: int | None = None) -> None:
        self.lr, self.threads = lr, threads
        self.memory = Memory(dict(chance), terms={name: deque(maxlen=STUCK_AFTER) for name in chance})

    def step(
        self, step: int, loss: float, losses: dict[str, float], lr: float, gradient: float, seconds: float, waited: float
    ) -> None:
        """Take in what a step said; a few microseconds."""
        memory = self.memory
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            memory.not_finite = BEFORE
            return
        memory.not_finite = max(0, memory.not_finite - 1)
        memory.steps.append([loss, gradient, seconds, waited])
        for name, values in memory.terms.items():
            if name in losses:
                values.append(losses[name])

    def against_chance(self) -> dict[str, float]:
        """The last value of each contrastive term over its value where nothing is told apart, by name: 1 is ln K. For the log."""
        memory = self.memory
        return {name: values[-1] / memory.chance[name] for name, values in memory.terms.items() if values}

    def judge(self, look: Look) -> Verdict | None:
        """The verdict at this look, None before step 100; the gravest that holds, and waiting for data after all others.

        A look at step 0, if there is one, tells what the weights grow from.
        """
        memory, now = self.memory, look.as_dict()
        earlier = memory.earlier(look.step)
        if look.step == 0:
            memory.began = look.weights
        apart = not memory.looks or look.step - memory.looks[-1]["step"] >= EVERY
        if apart and all(math.isfinite(value) for value in now.values()):
            memory.looks.append(now)
        verdict = None
        if look.step >= FIRST:
            found = next((found for rule in RULES if (found := rule(memory, now, earlier)) is not None), None)
            if found is None:
                found = Finding(HEALTHY, f"spread {look.embedding_spread:.2f}, rank {look.embedding_rank:.1f}", "", "")
            memory.name = found.name
            verdict = Verdict(found.name, look.step, found.figures, found.causes, self._advice(found.advice))
        if look.step >= memory.settled:
            for name in (*RANKS, *SPREADS):
                memory.peaks[name] = max(memory.peaks.get(name, 0.0), now[name])  # what is not finite is no peak
        return verdict

    def _advice(self, kind: str) -> str:
        """One thing to try, with the number where the setting is one."""
        if kind in RATES:
            factor, words = RATES[kind]
            return f"--fresh --set optimizer.lr={self.lr * factor:.2g}" if self.lr else f"--fresh with optimizer.lr {words}"
        if kind == "threads":
            return f"--threads {2 * self.threads}" if self.threads else "more --threads"
        return "--fresh --method simclr" if kind == "contrast" else ""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to judge as an uninterrupted one does; plain values for JSON."""
        memory = self.memory
        return {
            "steps": [list(values) for values in memory.steps],
            "terms": {name: list(values) for name, values in memory.terms.items()},
            "looks": [dict(look) for look in memory.looks],
            "peaks": dict(memory.peaks),
            "not_finite": memory.not_finite,
            "began": memory.began,
            "name": memory.name,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state; an empty one, of a checkpoint that has none, leaves all as it is."""
        memory = self.memory
        memory.steps.extend(list(values) for values in state.get("steps", []))
        for name, values in state.get("terms", {}).items():
            if name in memory.terms:
                memory.terms[name].extend(values)
        memory.looks.extend(dict(look) for look in state.get("looks", []))
        memory.peaks.update(state.get("peaks", {}))
        memory.began = state.get("began")
        memory.not_finite, memory.name = int(state.get("not_finite", 0)), str(state.get("name", HEALTHY))
