"""Worked examples that others published, put through our functions; the source stands beside each.

None of it was computed by us: a misreading of a formula that we share with our own oracles shows
here.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.n_step import Moment, NStepAccumulator, Row
from common.targets import n_step_target, td_error
from learner.losses import half_square, huber, weighted_mean

# TRFL, trfl/action_value_ops_test.py, QLearningTest and DoubleQLearningTest; RLax,
# rlax/_src/value_learning_test.py (890bd75), has the same numbers.
Q_TM1 = [[1.0, 1.0, 0.0], [1.0, 2.0, 0.0]]
A_TM1 = [0, 1]
R_T = [1.0, 1.0]
DISCOUNT_T = [0.0, 1.0]
Q_T = [[0.0, 1.0, 0.0], [1.0, 2.0, 0.0]]
Q_T_VALUE = [[99.0, 1.0, 98.0], [91.0, 2.0, 66.0]]
Q_T_SELECTOR = [[2.0, 10.0, 1.0], [11.0, 20.0, 1.0]]
TARGET = [1.0, 3.0]
TD_ERROR = [0.0, 1.0]
LOSS = [0.0, 0.5]
DESCENT = [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("value", "selector"),
    [(Q_T, Q_T), (Q_T_VALUE, Q_T_SELECTOR)],
    ids=["Q-learning", "double Q-learning"],
)
def test_q_learning_of_trfl_and_rlax(value: list, selector: list) -> None:
    q_tm1 = torch.tensor(Q_TM1, requires_grad=True)
    target = n_step_target(
        torch.tensor(R_T), torch.tensor(DISCOUNT_T), torch.tensor(value), torch.tensor(selector)
    )
    td = td_error(q_tm1, torch.tensor(A_TM1), target)
    loss = half_square(td)
    (gradient,) = torch.autograd.grad(-loss.sum(), q_tm1)
    assert target.tolist() == TARGET
    assert td.tolist() == TD_ERROR
    assert loss.tolist() == LOSS
    assert gradient.tolist() == DESCENT


def test_huber_of_rlax() -> None:
    """RLax, rlax/_src/clipping_test.py (890bd75), HuberLossTest: values and slopes, delta 1."""
    td = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    loss = huber(td, delta=1.0)
    (slope,) = torch.autograd.grad(loss.sum(), td)
    assert loss.tolist() == [1.5, 0.5, 0.125, 0.0, 0.125, 0.5, 1.5]
    assert slope.tolist() == [-1.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("weight", "expected"), [([1.0, 1.0, 1.0, 1.0], 0.155), ([1.0, 1.0, 0.0, 0.0], 0.09)]
)
def test_weighted_huber_of_keras(weight: list[float], expected: float) -> None:
    """The documentation of tf.keras.losses.Huber; rows that weigh nothing still count as rows."""
    y_true = torch.tensor([0.0, 1.0, 0.0, 0.0])
    y_pred = torch.tensor([0.6, 0.4, 0.4, 0.6])
    loss = weighted_mean(huber(y_true - y_pred, delta=1.0), torch.tensor(weight))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


# --- n-step returns -------------------------------------------------------------------------------


def rows_of(
    rewards: list[float], *, n_step: int, gamma: float, terminated: bool, truncated: bool
) -> list[list[Row]]:
    """Return what each timestep of one game finishes; its first timestep comes before `rewards`."""
    accumulator = NStepAccumulator(n_step=n_step, gamma=gamma)
    finished = []
    for t in range(len(rewards) + 1):
        last = t == len(rewards)
        finished.append(
            accumulator.observe(
                Moment(frame=t, depth=1, q=np.zeros(2, np.float32)),
                rewards[t - 1] if t else 0.0,
                terminated=last and terminated,
                truncated=last and truncated,
                first=t == 0,
                game_over=last and (terminated or truncated),
            )
        )
        accumulator.act(0, (0, 0))
    return finished


def targets(rows: list[list[Row]], values: list[float]) -> list[float]:
    """Return each row's target where a state's value, of its best action, is `values[t]`."""
    flat = [row for some in rows for row in some]
    q_t = torch.tensor([[values[row.t.frame], -1e3] for row in flat])
    r_t: Tensor = torch.tensor([row.r_t for row in flat])
    discount_t = torch.tensor([row.discount_t for row in flat])
    found: list[float] = n_step_target(r_t, discount_t, q_t, q_t).tolist()
    return found


@pytest.mark.parametrize("n_step", range(1, 8))
def test_finite_returns_of_sutton_and_barto(n_step: int) -> None:
    """Sutton & Barto 2018, exercise 3.8: G of rewards -1, 2, 6, 3, 2 and then the end, gamma 0.5.

    With the true values to bootstrap from, every n gives them back.
    """
    returns = [2.0, 6.0, 8.0, 4.0, 2.0]
    rows = rows_of(
        [-1.0, 2.0, 6.0, 3.0, 2.0], n_step=n_step, gamma=0.5, terminated=True, truncated=False
    )
    # What lies behind the end must not matter.
    assert targets(rows, [*returns, 1e6]) == pytest.approx(returns, rel=1e-6)
    if n_step >= 5:
        assert [row.r_t for row in rows[-1]] == returns


@pytest.mark.parametrize("n_step", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("length", [1, 2, 4, 30])
def test_infinite_return_of_sutton_and_barto_whose_game_is_cut(n_step: int, length: int) -> None:
    """Sutton & Barto 2018, exercise 3.9: rewards 2, 7, 7, 7, ... for ever, gamma 0.9: 65, 70, 70.

    A time limit that cuts it anywhere changes nothing: every tail bootstraps.
    """
    rewards = [2.0] + [7.0] * (length - 1)
    rows = rows_of(rewards, n_step=n_step, gamma=0.9, terminated=False, truncated=True)
    returns = [65.0] + [70.0] * (length - 1)
    assert targets(rows, [*returns, 70.0]) == pytest.approx(returns, rel=1e-6)


def test_transitions_come_when_those_of_dqn_zoo_come() -> None:
    """DQN Zoo, dqn_zoo/replay_test.py (f87bb1f): how many after each timestep, n = 3.

    test_all_remaining_transitions_yielded_when_timestep_is_last: a game of 7 timesteps that ends,
    and the beginning of another.
    """
    whole = rows_of([1.0] * 6, n_step=3, gamma=0.9, terminated=True, truncated=False)
    begun = rows_of([1.0] * 4, n_step=3, gamma=0.9, terminated=False, truncated=False)
    assert [len(rows) for rows in whole] == [0, 0, 0, 1, 1, 1, 3]
    assert [len(rows) for rows in begun] == [0, 0, 0, 1, 1]
    ends = [(row.tm1.frame, row.t.frame) for row in whole[-1]]
    assert ends == [(3, 6), (4, 6), (5, 6)]
