"""The one costly step of every contrastive loss: B queries against M bank entries, reduced to a few numbers per query.

What a loss needs of a query's negatives is the logarithm of their summed exponentials and, with soft targets, one weighted sum; the
rest, the `head`, is arithmetic on these and the positives. The dense form makes the whole matrix and leaves the gradient to autograd.
The chunked form goes through it once, in blocks of rows that stay in the cache, and has the gradient when it has the loss: it never
holds more than a block, and its memory is linear in B and M.

Legend: B queries, M bank entries, K negatives of a query, P positives of a query, D dimensions; rows of unit length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from smallview.objectives.soft_targets import SoftTargets

Count = int | Tensor
# (positive logits [B, P], log_sum [B], soft_sum [B] or None, count) -> loss of each query, [B]; row by row, no row sees another
Head = Callable[[Tensor, Tensor, Tensor | None, Count], Tensor]
# From this many similarities on the chunked form is the faster one; a block holds about so many of them, and enough rows that the
# products stay products of matrices (benchmarks/loss.py).
CHUNKED_FROM = {"cpu": 2**20, "cuda": 2**26}
BLOCK = {"cpu": 2**21, "cuda": 2**24}
FEWEST_ROWS = 64


def contrast(
    query: Tensor,
    positives: Tensor,
    bank: Tensor,
    head: Head,
    *,
    temperature: float,
    own: Tensor | None = None,
    is_negative: Tensor | None = None,
    soft: SoftTargets | None = None,
    chunked: bool | None = None,
) -> Tensor:
    """The sum of `head` over all queries [B, D] with their positives' logits [B, P] and a bank [M, D],
    or [B, K, D] of their own; a scalar.

    own, is_negative, soft: as for `against`. chunked: None decides by size; both forms give the same numbers to rounding.
    """
    if chunked is None:
        kind = "cpu" if query.device.type == "cpu" else "cuda"
        chunked = len(query) * len(bank) >= CHUNKED_FROM[kind]
    if not chunked or bank.dim() == 3:
        seen = against(query, bank, temperature=temperature, own=own, is_negative=is_negative, soft=soft)
        return head(positives, *seen).sum()
    count = _checked_count(len(query), len(bank), own, is_negative, soft)
    total: Tensor = _Chunked.apply(query, positives, bank, head, temperature, own, is_negative, soft, count)
    return total


def against(
    query: Tensor,
    bank: Tensor,
    *,
    temperature: float,
    own: Tensor | None = None,
    is_negative: Tensor | None = None,
    soft: SoftTargets | None = None,
) -> tuple[Tensor, Tensor | None, Count]:
    """(log_sum [B], soft_sum [B] or None, count) of queries [B, D] against a bank [M, D], or [B, K, D] of their own; dense.

    log_sum: logarithm of the summed exponentials of similarity / temperature over a query's negatives. soft_sum: their weighted sum
    with the shares of `soft`, None without. count: how many negatives a query has, int64 [B] where that differs between queries.
    own int64 [B, P]: entries that are no negatives. is_negative bool [B, M].

    Raises:
        ValueError: a query without negatives, or with fewer than `soft` ranks.
    """
    count = _checked_count(len(query), bank.shape[-2], own, is_negative, soft)
    logits = (query @ bank.T if bank.dim() == 2 else torch.einsum("bd,bkd->bk", query, bank)) / temperature  # [B, M]
    if own is not None:
        logits = logits.scatter(1, own, -math.inf)
    if is_negative is not None:
        logits = logits.masked_fill(~is_negative, -math.inf)
    soft_sum = soft.soft_sum(logits, count) if soft is not None else None
    return torch.logsumexp(logits, 1), soft_sum, count


def _checked_count(b: int, m: int, own: Tensor | None, is_negative: Tensor | None, soft: SoftTargets | None) -> Count:
    """The negatives that are really there, per query; one number where all have equally many."""
    if is_negative is None:
        count: Count = m - (0 if own is None else own.shape[1])
        fewest = count
    else:
        count = (is_negative if own is None else is_negative.scatter(1, own, False)).sum(1)
        fewest = int(count.min())
        count = fewest if fewest == int(count.max()) else count
    least = soft.least if soft is not None else 1
    if fewest < 1:
        raise ValueError(
            "a query has no negatives; wanted at least one each: more pictures in the batch, a queue, or another mask"
        )
    if fewest < least:
        raise ValueError(
            f"nearest is {least} and a query has {fewest} negative{'s' * (fewest != 1)}; wanted nearest to be at most that: "
            f"a larger bank, or nearest={fewest}"
        )
    return count


def _blocks(b: int, m: int, device: torch.device) -> Iterator[slice]:
    step = max(FEWEST_ROWS, BLOCK["cpu" if device.type == "cpu" else "cuda"] // m)
    return (slice(start, min(start + step, b)) for start in range(0, b, step))


class _Chunked(torch.autograd.Function):
    """The sum of the head over blocks of rows, and its gradient on the way: each block's similarities are looked at once."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        positives: Tensor,
        bank: Tensor,
        head: Head,
        temperature: float,
        own: Tensor | None,
        is_negative: Tensor | None,
        soft: SoftTargets | None,
        count: Count,
    ) -> Tensor:
        of_query = torch.empty_like(query) if ctx.needs_input_grad[0] else None
        of_positives = torch.empty_like(positives) if ctx.needs_input_grad[1] else None
        of_bank = torch.zeros_like(bank) if ctx.needs_input_grad[2] else None
        needed = any(ctx.needs_input_grad)
        scaled = query / temperature
        total = query.new_zeros(())
        for rows in _blocks(len(query), len(bank), query.device):
            logits = scaled[rows] @ bank.T  # [b, M]
            if own is not None:
                logits.scatter_(1, own[rows], -math.inf)
            if is_negative is not None:
                logits.masked_fill_(~is_negative[rows], -math.inf)
            counted = count[rows] if isinstance(count, Tensor) else count
            soft_sum = soft.soft_sum(logits, counted) if soft is not None else None
            shares = None
            if soft is not None and needed:  # before the logits are overwritten
                shares = torch.zeros_like(logits)
                soft.spread_(shares, logits, counted, torch.ones_like(logits[:, 0]))
            top = logits.amax(1, keepdim=True)
            weights = logits.sub_(top).exp_()
            summed = weights.sum(1)
            log_sum = summed.log() + top[:, 0]
            with torch.enable_grad():
                # the head is row by row and tiny: autograd gives its slopes at once
                places = [positives[rows].detach().requires_grad_(), log_sum.requires_grad_()]
                if soft_sum is not None:
                    places.append(soft_sum.requires_grad_())
                loss = head(places[0], places[1], places[2] if soft_sum is not None else None, counted).sum()
            total += loss.detach()
            if not needed:
                continue
            found = torch.autograd.grad(loss, places, allow_unused=True)
            slopes = [torch.zeros_like(x) if slope is None else slope for slope, x in zip(found, places, strict=True)]
            weights.mul_((slopes[1] / summed)[:, None])  # d loss / d logits
            if shares is not None:
                weights.addcmul_(shares, slopes[2][:, None])
            if of_positives is not None:
                of_positives[rows] = slopes[0]
            if of_query is not None:
                torch.mm(weights, bank, out=of_query[rows])
            if of_bank is not None:
                of_bank.addmm_(weights.T, scaled[rows])
        if of_query is not None:
            of_query /= temperature
        ctx.save_for_backward(of_query, of_positives, of_bank)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # once_differentiable does not notice where the upstream is a constant
            raise RuntimeError(
                "the chunked form, taken for many similarities, has no second derivative; wanted no create_graph=True, or the dense "
                'form: info_nce(..., reduction="none").mean()'
            )
        found = (None if gradient is None else upstream * gradient for gradient in ctx.saved_tensors)
        return (*found, *(None,) * 6)
