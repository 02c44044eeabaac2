"""What a stage of a training takes over from the one before it: weights, momentum target, bank, and the optimizer where it goes on.

Source: Cao and Wu, 2021 (S3L): query, key, head and queue are loaded; a queue of another length is dropped; the optimizer begins anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from smallview.errors import UsageError
from smallview.networks.encoders import EncoderConfig, load_encoder
from smallview.networks.growing import grow, split_inputs
from smallview.networks.online_target import Networks
from smallview.training import checkpoint
from smallview.training.state import TrainState

ENCODERS = ("online.encoder.", "target.encoder.")


@dataclass(frozen=True)
class Ended:
    """A stage that has ended: its encoder, how that is described, and every tensor of its last checkpoint."""

    net: nn.Module = field(repr=False)
    encoder: EncoderConfig
    tensors: dict[str, Tensor] = field(repr=False)

    @staticmethod
    def of(folder: Path, into: nn.Module | None = None) -> Ended:
        """The stage that ended in this folder; `into` is a module of the user's own.

        Raises:
            UsageError: it has not ended, or its last checkpoint is gone.
        """
        net, config = load_encoder(folder, into=into)
        loaded = checkpoint.load_latest(folder / "checkpoints")
        if loaded is None:
            raise UsageError(f"{folder} has no checkpoint any more; wanted its last one, which the next stage begins with")
        return Ended(net, config, loaded[1])

    def into(
        self, networks: Networks, encoder: EncoderConfig, seed: int, say: Callable[[str], None]
    ) -> tuple[list[str], list[str]]:
        """Give networks what this stage has learned; -> the names of what is new in the encoder, and of what of the heads began anew.

        Another encoder than this stage's is one that it grows into: it computes the same at first.

        Raises:
            UsageError: an encoder that is no continuation of this stage's.
        """
        if encoder.architecture != self.encoder.architecture:
            self._grow(networks, seed)
            say(f"{self.encoder.architecture} has grown into {encoder.architecture}, and computes what it did")
            known = self.net.state_dict()
            return [name for name in networks.online.encoder.state_dict() if name not in known], []
        new, heads = take_over_networks(networks, self.networks())
        if new:
            say(f"the encoder has got {len(new)} more tensors, from {new[0]} on; what was learned stays as it was")
        if heads:
            say(f"{self.encoder.features} features became {encoder.features}: projector and predictor begin anew")
        return new, heads

    @torch.no_grad()
    def _grow(self, networks: Networks, seed: int) -> None:
        """Online network and target grow by the same choices, and the first layer after them takes copies of a feature for what it was."""
        before, own = self.networks(), networks.state_dict()
        for side, branch in (("online", networks.online), ("target", networks.target)):
            if branch is None:
                continue
            source = side if f"{side}.projector" in {".".join(name.split(".")[:2]) for name in before} else "online"
            start = f"{source}.encoder."
            old = copy.deepcopy(self.net)
            old.load_state_dict({name[len(start) :]: value for name, value in before.items() if name.startswith(start)})
            mapping = grow(old, branch.encoder, seed)
            start = f"{source}.projector."
            heads = {name[len(start) :]: value for name, value in before.items() if name.startswith(start)}
            first = next((name for name, m in branch.projector.named_modules() if isinstance(m, nn.Linear)), None)
            if first is not None:
                weight = heads[f"{first}.weight"]
                narrow = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False)
                narrow.weight.copy_(weight)
                heads[f"{first}.weight"] = split_inputs(narrow, mapping, seed).weight
            branch.projector.load_state_dict(heads)
        for name, value in before.items():
            if name.startswith("predictor."):
                own[name].copy_(value)

    def networks(self) -> dict[str, Tensor]:
        """Weights and statistics of online network, predictor and target, by name."""
        prefix = "networks."
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def take_over_networks(networks: Networks, before: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy what the stage before has learned; -> what of the encoder is new, and what of the heads began anew.

    An encoder that has got more stages keeps those that it had, bit for bit. Heads are taken over as a whole, or, where the number of features
    is another one now, begin anew.

    Raises:
        UsageError: an encoder that is no continuation of the one before.

    Example:
        >>> from smallview.networks.heads import MLP, Heads
        >>> from smallview.networks.online_target import Shared
        >>> one, two = (Networks(nn.Linear(4, 3), 3, Heads(MLP(out=2)), Shared()) for _ in range(2))
        >>> take_over_networks(two, one.state_dict())
        ([], [])
        >>> torch.equal(one.online.encoder.weight, two.online.encoder.weight)
        True
    """
    own = networks.state_dict()
    fresh: list[str] = []
    for prefix in ENCODERS:
        mine = {name for name in own if name.startswith(prefix)}
        theirs = {name for name in before if name.startswith(prefix)}
        other = [name for name in sorted(theirs) if name not in mine or own[name].shape != before[name].shape]
        if other and mine:
            raise UsageError(
                f"the encoder of this stage does not go on as that of the stage before: {len(other)} tensors have no place in it, e.g. "
                f"{other[0][len(prefix) :]} {list(before[other[0]].shape)}; wanted the same one with more stages, or one that it can grow into"
            )
        for name in theirs & mine:
            own[name].copy_(before[name])
        if theirs or prefix == ENCODERS[0]:
            fresh += [name[len(prefix) :] for name in sorted(mine - theirs) if prefix == ENCODERS[0]]
    heads = sorted(name for name in own if not name.startswith(ENCODERS))
    known = {name for name in before if not name.startswith(ENCODERS)}
    if all(name in known and own[name].shape == before[name].shape for name in heads):
        for name in heads:
            own[name].copy_(before[name])
        heads = []
    if networks.target is not None and not any(name.startswith(ENCODERS[1]) for name in before):
        networks.target.load_state_dict(networks.online.state_dict())
    return fresh, heads


@torch.no_grad()
def take_over_state(state: TrainState, before: Mapping[str, Tensor], *, optimizer: bool, heads: bool = True) -> list[str]:
    """The bank, where its lengths are the same, and the optimizer, if asked for and if it moves the same weights; -> what is to be said.

    heads: whether they were taken over; where they began anew, what the old ones have put into the queue means nothing to them.
    """
    told = []
    old = {name[len("bank.") :]: value for name, value in before.items() if name.startswith("bank.")}
    queue = "keys" in state.bank
    if queue and not heads:
        told.append("the queue begins anew with the projector")
    elif state.bank and all(name in old and old[name].shape == value.shape for name, value in state.bank.items()):
        state.bank = {name: old[name].to(value.device) for name, value in state.bank.items()}
    elif queue and old:
        told.append("the queue has another length than in the stage before, and is filled anew")
    if optimizer:
        shapes = [p.shape for p in state.trained()]
        found: dict[int, dict[str, Tensor]] = {}
        for name, value in before.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".", 2)
                found.setdefault(int(i), {})[key] = value
        fits = all(
            i < len(shapes) and all(v.dim() == 0 or v.shape == shapes[i] for v in values.values())
            for i, values in found.items()
        )
        if not found:  # plain gradient descent remembers nothing
            return told
        if fits and len(found) == len(shapes):
            kept = {f"optimizer.{i}.{key}": v for i, values in found.items() for key, v in values.items()}
            now = {f"networks.{name}": value for name, value in state.networks.state_dict().items()}
            state.load({**now, **{f"bank.{k}": v for k, v in state.bank.items()}, **kept}, state.step, state.skipped)
        else:
            told.append("the optimizer begins anew: it moves other weights than in the stage before")
    return told
