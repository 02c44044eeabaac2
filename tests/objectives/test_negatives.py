"""Where negatives come from: the batch, a few of it, a queue that wraps at any size, or fixed pictures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.objectives import Fixed, InBatch, NoNegatives, Queue
from smallview.records import Candidates, Embedded

CPU = torch.device("cpu")


def seen(target: Tensor, fixed: Tensor | None = None) -> Embedded:
    views = tuple(range(len(target)))
    return Embedded(target, target, views, views, fixed)


def drawn(negatives: Any, target: Tensor, key: tuple[int, int] = (0, 0)) -> Candidates:
    candidates, _ = negatives.draw(negatives.init(0, target.shape[2], CPU), seen(target), key)
    assert candidates is not None
    return candidates


def pictures_of(candidates: Candidates, target: Tensor, view: int) -> list[list[tuple[int, int]]]:
    """For each picture, the (target view, picture) it is pushed away from where its positive is in `view`; sorted."""
    bank = candidates.of(view)
    b = target.shape[1]
    places = [divmod(int(j), b) for j in (bank[:, None] == target.flatten(0, 1)[None]).all(-1).nonzero()[:, 1]]
    assert len(places) == len(bank)
    out = []
    for i in range(b):
        counts = torch.ones(len(bank), dtype=torch.bool)
        if candidates.own is not None:
            counts[candidates.own[i]] = False
        if candidates.is_negative is not None:
            counts &= candidates.is_negative[i]
        out.append(sorted(places[j] for j in counts.nonzero()[:, 0].tolist()))
    return out


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("b", [2, 3, 5])
def test_in_batch_is_all_others_in_all_target_views_with_gradient(draw, views: int, b: int) -> None:
    target = draw(views, b, 4).requires_grad_()
    candidates = drawn(InBatch(), target)
    for view in range(views):
        assert pictures_of(candidates, target, view) == [
            [(t, j) for t in range(views) for j in range(b) if j != i] for i in range(b)
        ]
    candidates.embeddings.sum().backward()
    assert target.grad is not None and bool((target.grad == 1).all())
    # nothing as large as queries times entries is made
    assert candidates.is_negative is None and candidates.pictures is None


@pytest.mark.parametrize("b", [2, 3, 5])
def test_in_batch_of_the_positives_view(draw, b: int) -> None:
    target = draw(3, b, 4)
    candidates = drawn(InBatch(views="positive"), target)
    for view in range(3):
        assert pictures_of(candidates, target, view) == [[(view, j) for j in range(b) if j != i] for i in range(b)]


@pytest.mark.parametrize("views", ["all", "positive"])
@pytest.mark.parametrize(("b", "per_query"), [(2, 1), (5, 1), (5, 3), (8, 4), (8, 6), (9, 7)])
def test_few_negatives_exactly_so_many_and_never_the_own_picture(draw, views: str, b: int, per_query: int) -> None:
    target = draw(2, b, 4)
    for step in range(5):
        candidates = drawn(InBatch(views=views, per_query=per_query), target, (1, step))
        for view in range(2):
            lists = pictures_of(candidates, target, view)
            assert all(len(set(row)) == per_query for row in lists)
            assert all(j != i and (views == "all" or t == view) for i, row in enumerate(lists) for t, j in row)


def test_few_negatives_come_from_one_permutation_that_all_queries_share(draw) -> None:
    """It numbers each query's list without the query's own picture: neighbours in the batch differ by one place at most."""
    b, per_query = 9, 4
    target = draw(2, b, 4)
    for step in range(6):
        candidates = drawn(InBatch(views="positive", per_query=per_query), target, (0, step))
        lists = pictures_of(candidates, target, 1)
        places = [sorted(j - (j > i) for _, j in row) for i, row in enumerate(lists)]
        assert all(row == places[0] for row in places)
        assert candidates.pictures is not None and candidates.pictures.shape == (b, per_query)
        assert [sorted(row) for row in candidates.pictures.tolist()] == [[j for _, j in row] for row in lists]
        everywhere = drawn(InBatch(per_query=per_query), target, (0, step))
        places = [sorted((t, j - (j > i)) for t, j in row) for i, row in enumerate(pictures_of(everywhere, target, 0))]
        assert all(row == places[0] for row in places)


def test_the_permutation_is_a_function_of_seed_and_step_alone(draw) -> None:
    negatives = InBatch(views="positive", per_query=3)

    def lists(key: tuple[int, int], seed: int = 0) -> list[list[tuple[int, int]]]:
        target = draw(1, 12, 4, seed=seed)
        return pictures_of(drawn(negatives, target, key), target, 0)

    torch.manual_seed(1)
    first = lists((3, 5))
    torch.manual_seed(2)
    assert lists((3, 5), seed=9) == first
    assert len({str(lists((3, step))) for step in range(8)}) > 6
    assert len({str(lists((seed, 5))) for seed in range(8)}) > 6


def test_the_permutation_is_fair(draw) -> None:
    """Each of the other 5 pictures is drawn about equally often: 1,200 x 2 / 5 = 480, of standard deviation 17."""
    target = draw(1, 6, 4)
    negatives = InBatch(views="positive", per_query=2)
    times = torch.zeros(6, 6)
    for step in range(1200):
        pictures = drawn(negatives, target, (0, step)).pictures
        assert pictures is not None
        times.scatter_add_(1, pictures, torch.ones(6, 2))
    off_diagonal = times[~torch.eye(6, dtype=torch.bool)]
    assert bool((times.diag() == 0).all()) and bool(((off_diagonal - 480).abs() < 85).all())


@pytest.mark.parametrize("per_query", [4, 5, 256])
def test_more_negatives_than_there_are_is_all_of_them(draw, per_query: int) -> None:
    target = draw(2, 5, 4)
    for views in ("all", "positive"):
        available = 4 if views == "positive" else 8
        few, full = drawn(InBatch(views=views, per_query=per_query), target), drawn(InBatch(views=views), target)
        lists = pictures_of(few, target, 0)
        if per_query >= available:
            assert lists == pictures_of(full, target, 0)
        assert all(len(row) == min(per_query, available) for row in lists)


def test_in_batch_has_no_state_and_keeps_the_gradient_of_the_entries_it_kept(draw) -> None:
    target = draw(1, 6, 4).requires_grad_()
    negatives = InBatch(views="positive", per_query=2)
    candidates, state = negatives.draw(negatives.init(0, 4, CPU), seen(target), (0, 0))
    assert state == {} and negatives.images(state) is None and candidates is not None
    candidates.embeddings.sum().backward()
    used = {place for row in pictures_of(candidates, target, 0) for place in row}
    assert target.grad is not None
    assert {(0, j) for j in range(6) if bool(target.grad[0, j].abs().sum() > 0)} == used
    assert not drawn(negatives, target.detach()).embeddings.requires_grad


def test_no_negatives(draw) -> None:
    none = NoNegatives()
    assert none.draw(none.init(0, 4, CPU), seen(draw(1, 2, 4)), (0, 0)) == (None, {})
    assert none.images({}) is None


@pytest.mark.parametrize(("size", "views", "b"), [(1, 1, 3), (5, 1, 2), (6, 1, 3), (7, 2, 2), (4, 1, 9), (10, 2, 5), (3, 2, 4)])
def test_queue_is_first_in_first_out_at_any_size(draw, size: int, views: int, b: int) -> None:
    queue = Queue(size)
    state = queue.init(0, 4, CPU)
    assert queue.images(state) is None
    remembered = list(state["keys"])  # oldest first
    for step in range(8):
        target = draw(views, b, 4, seed=step).float() * 5.0
        candidates, after = queue.draw(state, seen(target), (0, step))
        assert candidates is not None and candidates.own is None and candidates.is_negative is None
        assert candidates.embeddings.shape == (size, 4)
        # the loss sees what came before this step, never its own keys
        position = int(state["position"])
        torch.testing.assert_close(torch.roll(candidates.embeddings, -position, 0), torch.stack(remembered), rtol=0, atol=0)
        # all of the first target view, then all of the second
        remembered = (remembered + list(F.normalize(target.flatten(0, 1), dim=1)))[-size:]
        state = after
        assert 0 <= int(state["position"]) < size
        torch.testing.assert_close(state["keys"].norm(dim=1), torch.ones(size))


def test_queue_takes_the_first_view_whole_and_then_the_second(draw) -> None:
    target = draw(2, 3, 4).float()
    queue = Queue(10)
    _, state = queue.draw(queue.init(0, 4, CPU), seen(target), (0, 0))
    torch.testing.assert_close(state["keys"][:6], F.normalize(torch.cat([target[0], target[1]]), dim=1))
    assert int(state["position"]) == 6


def test_queue_hands_back_a_state_of_its_own_without_gradient(draw) -> None:
    queue = Queue(4)
    state = queue.init(0, 3, CPU)
    before = {name: value.clone() for name, value in state.items()}
    target = draw(1, 2, 3).requires_grad_()
    candidates, after = queue.draw(state, seen(target), (0, 0))
    assert candidates is not None
    bank = candidates.embeddings
    assert not bank.requires_grad and not after["keys"].requires_grad
    after["keys"].zero_()
    after["position"].fill_(9)
    for name, value in before.items():
        assert torch.equal(state[name], value)
    assert not torch.equal(bank, after["keys"])


def test_queue_of_bfloat16_targets_stays_float32(draw) -> None:
    queue = Queue(4)
    _, after = queue.draw(queue.init(0, 3, CPU), seen(draw(1, 2, 3).bfloat16()), (0, 0))
    assert after["keys"].dtype == torch.float32
    torch.testing.assert_close(after["keys"].norm(dim=1), torch.ones(4))


def test_queue_starts_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    a = Queue(5).init(3, 4, CPU)
    torch.manual_seed(2)
    b = Queue(5).init(3, 4, CPU)
    assert torch.equal(a["keys"], b["keys"])
    assert not torch.equal(a["keys"], Queue(5).init(4, 4, CPU)["keys"])
    torch.testing.assert_close(a["keys"].norm(dim=1), torch.ones(5))


def test_fixed_pictures_are_cut_once_and_embedded_each_step(draw) -> None:
    asked = []

    def cut(pictures: tuple[int, ...], patches: int, scale: tuple[float, float]) -> Tensor:
        asked.append((pictures, patches, scale))
        return draw(len(pictures) * patches, 3, 8, 8).float()

    negatives = Fixed(pictures=(4, 0), patches=3, scale=(0.1, 0.2))
    state = negatives.init(0, 4, CPU, cut)
    assert asked == [((4, 0), 3, (0.1, 0.2))]
    images = negatives.images(state)
    assert images is not None and torch.equal(images, draw(6, 3, 8, 8).float())
    fixed = draw(6, 4, seed=1).requires_grad_()
    for step in range(3):
        candidates, after = negatives.draw(state, seen(draw(1, 5, 4), fixed), (0, step))
        assert candidates is not None and candidates.own is None and candidates.is_negative is None
        assert torch.equal(candidates.embeddings, fixed) and candidates.embeddings.requires_grad
        kept = negatives.images(after)
        assert kept is not None and torch.equal(kept, images)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Queue(0), ("size is 0", "wanted 1 to")),
        (lambda: Queue(-1), ("size is -1", "wanted 1 to")),
        (lambda: Queue(2**22 + 1), (f"size is {2**22 + 1}", "wanted 1 to")),
        (lambda: InBatch(per_query=0), ("per_query is 0", "wanted 1 or more")),
        (lambda: InBatch(per_query=-4), ("per_query is -4", "wanted 1 or more")),
        (lambda: InBatch(views="some"), ("'some'", "wanted all or positive")),
        (lambda: Fixed(pictures=()), ("pictures is ()", "wanted one or more")),
        (lambda: Fixed(pictures=(0, -1)), ("(0, -1)", "wanted one or more")),
        (lambda: Fixed(patches=0), ("patches is 0", "wanted 1 or more")),
        (lambda: Fixed(scale=(0.0, 0.2)), ("scale is (0.0, 0.2)", "wanted")),
        (lambda: Fixed(scale=(0.3, 0.2)), ("scale is (0.3, 0.2)", "wanted")),
        (lambda: Fixed(scale=(0.3, 1.2)), ("scale is (0.3, 1.2)", "wanted")),
        (lambda: Fixed(scale=(math.nan, 0.2)), ("scale is (nan, 0.2)", "wanted")),
        (lambda: Fixed().init(0, 4, CPU), ("wanted `cut`",)),
        (lambda: Fixed().draw({}, seen(torch.ones(1, 2, 4)), (0, 0)), ("not embedded", "wanted networks(")),
    ],
)
def test_refusals(make, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)
