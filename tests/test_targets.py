"""Targets: hand arithmetic, truncation, and the shapes that would broadcast in silence."""

from __future__ import annotations

import pytest
import torch

from common.targets import n_step_target, td_error

R_T = torch.tensor([1.0, -0.5, 2.0])
DISCOUNT_T = torch.tensor([0.9, 0.0, 0.81])
SELECTOR = torch.tensor([[0.0, 5.0], [1.0, 0.0], [3.0, 2.0]])
VALUE = torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])


def test_double_dqn_selects_with_the_online_values_and_values_with_the_target_values() -> None:
    target = n_step_target(R_T, DISCOUNT_T, VALUE, SELECTOR)
    expected = [1.0 + 0.9 * 20.0, -0.5 + 0.0 * 30.0, 2.0 + 0.81 * 50.0]
    torch.testing.assert_close(target, torch.tensor(expected))


def test_plain_dqn_is_the_same_function_with_one_set_of_values() -> None:
    target = n_step_target(R_T, DISCOUNT_T, VALUE, VALUE)
    expected = [1.0 + 0.9 * 20.0, -0.5, 2.0 + 0.81 * 60.0]
    torch.testing.assert_close(target, torch.tensor(expected))


def test_truncation_is_only_a_matter_of_the_discount() -> None:
    # The same step twice: cut at a time limit it keeps its discount and bootstraps, terminated it
    # does not.
    r_t, q_t = torch.tensor([1.0, 1.0]), torch.tensor([[4.0, 8.0], [4.0, 8.0]])
    truncated_then_terminated = torch.tensor([0.99, 0.0])
    target = n_step_target(r_t, truncated_then_terminated, q_t, q_t)
    torch.testing.assert_close(target, torch.tensor([1.0 + 0.99 * 8.0, 1.0]))


def test_td_error_is_target_minus_the_value_of_the_action_taken() -> None:
    q_tm1 = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    td = td_error(q_tm1, torch.tensor([1, 0]), torch.tensor([5.0, 1.0]))
    torch.testing.assert_close(td, torch.tensor([5.0 - 2.0, 1.0 - 3.0]))


def test_gradient_flows_into_the_taken_action_only_and_never_into_the_target() -> None:
    q_tm1 = torch.tensor([[1.0, 2.0]], requires_grad=True)
    q_t = torch.tensor([[3.0, 4.0]], requires_grad=True)
    target = n_step_target(torch.tensor([0.0]), torch.tensor([0.5]), q_t, q_t)
    assert not target.requires_grad
    td_error(q_tm1, torch.tensor([1]), target).sum().backward()
    assert q_tm1.grad is not None
    assert q_tm1.grad.tolist() == [[0.0, -1.0]]
    assert q_t.grad is None
    leaking = torch.tensor([7.0], requires_grad=True)
    td_error(q_tm1, torch.tensor([1]), leaking).sum().backward()
    assert leaking.grad is None


@pytest.mark.parametrize("wrong", ["r_t", "discount_t", "rows"])
def test_column_vectors_are_rejected_instead_of_broadcast(wrong: str) -> None:
    r_t = R_T.unsqueeze(1) if wrong == "r_t" else R_T
    discount_t = DISCOUNT_T.unsqueeze(1) if wrong == "discount_t" else DISCOUNT_T
    values = VALUE[:1] if wrong == "rows" else VALUE  # one row against three would broadcast, too
    with pytest.raises(AssertionError):
        n_step_target(r_t, discount_t, values, values)


def test_column_vectors_are_rejected_by_the_td_error() -> None:
    q_tm1, a_tm1, target = VALUE, torch.tensor([0, 1, 0]), R_T
    td_error(q_tm1, a_tm1, target)
    with pytest.raises(AssertionError, match="target: rank 1"):
        td_error(q_tm1, a_tm1, target.unsqueeze(1))
    with pytest.raises(AssertionError, match="a_tm1: rank 1"):
        td_error(q_tm1, a_tm1.unsqueeze(1), target)
    with pytest.raises(AssertionError, match="a_tm1: torch.int64"):
        td_error(q_tm1, a_tm1.int(), target)
    with pytest.raises(AssertionError):
        td_error(q_tm1, a_tm1[:1], target)


def test_wrong_dtypes_are_rejected() -> None:
    with pytest.raises(AssertionError, match="r_t: torch.float32, actually: torch.float64"):
        n_step_target(R_T.double(), DISCOUNT_T, VALUE, VALUE)
