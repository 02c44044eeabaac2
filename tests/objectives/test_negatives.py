"""Where negatives come from: the batch, or a queue that wraps at any size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.objectives import InBatch, NoNegatives, Queue

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_in_batch_hands_on_the_targets_with_gradient_and_masks_the_own_picture() -> None:
    target = draw(2, 3, 4).requires_grad_()
    bank, is_negative, state = InBatch().draw({}, target, (0, 0))
    assert state == {}
    assert bank is not None and is_negative is not None
    for view in range(2):
        for i in range(3):
            torch.testing.assert_close(bank[view * 3 + i], target[view, i])
    wanted = [[j % 3 != i for j in range(6)] for i in range(3)]
    assert is_negative.tolist() == wanted
    bank.sum().backward()
    assert target.grad is not None and bool((target.grad == 1).all())


def test_no_negatives() -> None:
    assert NoNegatives().draw(NoNegatives().init(0, 4, CPU), draw(1, 2, 4), (0, 0)) == (None, None, {})


@pytest.mark.parametrize(("size", "views", "b"), [(1, 1, 3), (5, 1, 2), (6, 1, 3), (7, 2, 2), (4, 1, 9), (10, 2, 5), (3, 2, 4)])
def test_queue_is_first_in_first_out_at_any_size(size: int, views: int, b: int) -> None:
    queue = Queue(size)
    state = queue.init(0, 4, CPU)
    remembered = list(state["keys"])  # oldest first
    for step in range(8):
        target = draw(views, b, 4, seed=step) * 5.0
        bank, is_negative, after = queue.draw(state, target, (0, step))
        assert bank is not None and is_negative is not None
        assert bank.shape == (size, 4) and is_negative.shape == (b, size) and bool(is_negative.all())
        # the loss sees what came before this step, never its own keys
        position = int(state["position"])
        torch.testing.assert_close(torch.roll(bank, -position, 0), torch.stack(remembered), rtol=0, atol=0)
        remembered = (remembered + list(F.normalize(target.flatten(0, 1), dim=1)))[-size:]
        state = after
        assert 0 <= int(state["position"]) < size
        torch.testing.assert_close(state["keys"].norm(dim=1), torch.ones(size))


def test_queue_hands_back_a_state_of_its_own_without_gradient() -> None:
    queue = Queue(4)
    state = queue.init(0, 3, CPU)
    before = {name: value.clone() for name, value in state.items()}
    target = draw(1, 2, 3).requires_grad_()
    bank, _, after = queue.draw(state, target, (0, 0))
    assert bank is not None and not bank.requires_grad and not after["keys"].requires_grad
    after["keys"].zero_()
    after["position"].fill_(9)
    for name, value in before.items():
        assert torch.equal(state[name], value)
    assert not torch.equal(bank, after["keys"])


def test_queue_of_bfloat16_targets_stays_float32() -> None:
    queue = Queue(4)
    _, _, after = queue.draw(queue.init(0, 3, CPU), draw(1, 2, 3).bfloat16(), (0, 0))
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


@pytest.mark.parametrize("size", [0, -1, 2**22 + 1])
def test_refused_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        Queue(size)
