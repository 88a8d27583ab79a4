from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from oracles import NaiveTransition, Step, naive_n_step

from actors.n_step import Moment, NStepAccumulator, Row

GAMMA = 0.9
FIRST = Step(action=0, first=True)


def moment(t: int) -> Moment:
    return Moment(frame=t, depth=min(t + 1, 4), q=np.full(3, t, np.float32))


def observe(accumulator: NStepAccumulator, t: int, step: Step) -> list[Row]:
    return accumulator.observe(
        moment(t),
        step.reward,
        terminated=step.terminated,
        truncated=step.truncated,
        first=step.first,
        game_over=step.game_over,
    )


def play(steps: list[Step], n_step: int, gamma: float = GAMMA) -> list[Row]:
    """Return all rows; timestep t is Moment(frame=t) and its action carries the version (7, t)."""
    accumulator = NStepAccumulator(n_step=n_step, gamma=gamma)
    rows = []
    for t, step in enumerate(steps):
        rows += observe(accumulator, t, step)
        accumulator.act(step.action, (7, t))
    return rows


def spans(rows: list[Row]) -> list[tuple[int, int, float, float]]:
    return [(row.tm1.frame, row.t.frame, row.r_t, row.discount_t) for row in rows]


class Case(NamedTuple):
    """Timesteps and the transitions they must give: (from, to, return, discount)."""

    name: str
    n_step: int
    steps: list[Step]
    expected: list[tuple[int, int, float, float]]


def over(reward: float, *, terminated: bool = False, truncated: bool = False) -> Step:
    return Step(0, reward, terminated, truncated, game_over=True)


CASES = [
    Case("the first timestep after reset ends nothing", 3, [FIRST], []),
    Case(
        "one step returns are the rewards",
        1,
        [FIRST, Step(1, 2.0), Step(2, 3.0)],
        [(0, 1, 2.0, 0.9), (1, 2, 3.0, 0.9)],
    ),
    Case(
        "three steps add up to a discounted sum",
        3,
        [FIRST, Step(0, 1.0), Step(0, 2.0), Step(0, 4.0), Step(0, 8.0)],
        [
            (0, 3, 1.0 + 0.9 * 2.0 + 0.9**2 * 4.0, 0.9**3),
            (1, 4, 2.0 + 0.9 * 4.0 + 0.9**2 * 8.0, 0.9**3),
        ],
    ),
    Case(
        "termination closes every open transition with discount 0",
        3,
        [FIRST, Step(0, 1.0), Step(0, 2.0), Step(0, 4.0), over(8.0, terminated=True)],
        [
            (0, 3, 1.0 + 0.9 * 2.0 + 0.9**2 * 4.0, 0.9**3),
            (1, 4, 2.0 + 0.9 * 4.0 + 0.9**2 * 8.0, 0.0),
            (2, 4, 4.0 + 0.9 * 8.0, 0.0),
            (3, 4, 8.0, 0.0),
        ],
    ),
    Case(
        "truncation bootstraps with gamma to the steps really taken",
        3,
        [FIRST, Step(0, 1.0), Step(0, 2.0), Step(0, 4.0), over(8.0, truncated=True)],
        [
            (0, 3, 1.0 + 0.9 * 2.0 + 0.9**2 * 4.0, 0.9**3),
            (1, 4, 2.0 + 0.9 * 4.0 + 0.9**2 * 8.0, 0.9**3),
            (2, 4, 4.0 + 0.9 * 8.0, 0.9**2),
            (3, 4, 8.0, 0.9**1),
        ],
    ),
    Case(
        "truncated while terminating is terminated",
        2,
        [FIRST, over(5.0, terminated=True, truncated=True)],
        [(0, 1, 5.0, 0.0)],
    ),
    Case(
        "a game shorter than n keeps its tail",
        5,
        [FIRST, Step(0, 1.0), over(2.0, terminated=True)],
        [(0, 2, 1.0 + 0.9 * 2.0, 0.0), (1, 2, 2.0, 0.0)],
    ),
    Case(
        "a game shorter than n that is cut keeps its tail",
        5,
        [FIRST, Step(0, 1.0), over(2.0, truncated=True)],
        [(0, 2, 1.0 + 0.9 * 2.0, 0.9**2), (1, 2, 2.0, 0.9)],
    ),
    Case(
        "no return reaches across a game's end",
        2,
        [FIRST, over(1.0, terminated=True), FIRST, Step(0, 4.0), Step(0, 8.0)],
        [(0, 1, 1.0, 0.0), (2, 4, 4.0 + 0.9 * 8.0, 0.9**2)],
    ),
    Case(
        "a lost life cuts the value and the game goes on",
        2,
        [FIRST, Step(0, 1.0), Step(0, 2.0, terminated=True), Step(0, 4.0), Step(0, 8.0)],
        [(0, 2, 1.0 + 0.9 * 2.0, 0.0), (1, 2, 2.0, 0.0), (2, 4, 4.0 + 0.9 * 8.0, 0.9**2)],
    ),
    Case(
        "lives lost one after another give one step each",
        3,
        [FIRST, Step(0, 1.0, terminated=True), Step(0, 2.0, terminated=True), Step(0, 4.0)],
        [(0, 1, 1.0, 0.0), (1, 2, 2.0, 0.0)],
    ),
    Case(
        "the reward of a first timestep counts nowhere",
        1,
        [FIRST, over(1.0, truncated=True), Step(0, 99.0, first=True), Step(0, 3.0)],
        [(0, 1, 1.0, 0.9), (2, 3, 3.0, 0.9)],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_table_of_games(case: Case) -> None:
    rows = spans(play(case.steps, case.n_step))
    assert [row[:2] for row in rows] == [row[:2] for row in case.expected]
    np.testing.assert_allclose(
        np.reshape(rows, (-1, 4)), np.reshape(case.expected, (-1, 4)), rtol=1e-12
    )
    discounts = [row[3] for row in rows]
    zeros = [row[3] == 0.0 for row in case.expected]
    assert [discount == 0.0 for discount in discounts] == zeros


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_table_holds_for_the_oracle_too(case: Case) -> None:
    rows = [(r.tm1, r.t, r.r_t, r.discount_t) for r in naive_n_step(case.steps, case.n_step, GAMMA)]
    np.testing.assert_allclose(np.reshape(rows, (-1, 4)), np.reshape(case.expected, (-1, 4)))


@st.composite
def streams(draw: st.DrawFn) -> list[Step]:
    """Games of random lengths, ends, lost lives and rewards; the last one is not over."""
    steps: list[Step] = []
    rewards = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0])
    for _ in range(draw(st.integers(1, 6))):
        steps.append(Step(draw(st.integers(0, 2)), draw(rewards), first=True))
        for _ in range(draw(st.integers(0, 8))):
            life = draw(st.sampled_from([False, False, False, True]))
            steps.append(Step(draw(st.integers(0, 2)), draw(rewards), terminated=life))
        end = draw(st.sampled_from([(True, False), (False, True), (True, True)]))
        steps.append(Step(draw(st.integers(0, 2)), draw(rewards), *end, game_over=True))
    return steps[: draw(st.integers(0, len(steps)))]


@given(steps=streams(), n_step=st.integers(1, 6), gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]))
@settings(max_examples=300, deadline=None)
def test_any_stream_gives_what_the_oracle_gives(
    steps: list[Step], n_step: int, gamma: float
) -> None:
    rows = play(steps, n_step, gamma)
    expected = naive_n_step(steps, n_step, gamma)
    actual = [NaiveTransition(r.tm1.frame, r.t.frame, r.a_tm1, r.r_t, r.discount_t) for r in rows]
    assert [row[:3] for row in actual] == [row[:3] for row in expected]
    np.testing.assert_allclose(
        [row[3:] for row in actual], [row[3:] for row in expected], rtol=1e-12, atol=1e-12
    )


def gaps(steps: list[Step], one: str, other: str) -> list[int]:
    """Return for each timestep with flag `one` how far behind it the next with `other` is."""
    marks = [t for t, step in enumerate(steps) if getattr(step, other)]
    starts = [t for t, step in enumerate(steps) if getattr(step, one)]
    return [min((m - t for m in marks if m > t), default=999) for t in starts]


@pytest.mark.parametrize(
    "edge",
    [
        pytest.param(lambda s: any(x.truncated and not x.terminated for x in s), id="truncation"),
        pytest.param(lambda s: any(x.truncated and x.terminated for x in s), id="both at once"),
        pytest.param(lambda s: any(x.terminated and not x.game_over for x in s), id="a lost life"),
        pytest.param(
            lambda s: any(
                x.terminated and not x.game_over and gap <= 2
                for x, gap in zip(
                    [x for x in s if x.terminated], gaps(s, "terminated", "truncated"), strict=True
                )
            ),
            id="a time limit within n steps of a lost life",
        ),
        pytest.param(lambda s: 1 in gaps(s, "terminated", "terminated"), id="two lives in a row"),
        pytest.param(lambda s: 1 in gaps(s, "first", "game_over"), id="a game of one step"),
        pytest.param(lambda s: bool(s) and not s[-1].game_over, id="a tail that is not over"),
        pytest.param(lambda s: sum(x.first for x in s) >= 3, id="several games"),
    ],
)
def test_streams_reach_every_edge(edge: Callable[[list[Step]], bool]) -> None:
    """So that the property above is about truncation, lost lives and tails, and not only games."""
    unshrunk = settings(phases=[Phase.generate], database=None)
    assert edge(find(streams(), edge, settings=unshrunk))


@given(steps=streams(), n_step=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_each_real_action_of_a_finished_game_starts_one_transition(
    steps: list[Step], n_step: int
) -> None:
    finished = max((t + 1 for t, step in enumerate(steps) if step.game_over), default=0)
    starts = [row.tm1.frame for row in play(steps[:finished], n_step)]
    assert starts == [t for t in range(finished) if not steps[t].game_over]


# --- traps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_step", [1, 2, 3, 5])
def test_trap_n_step_return_never_reaches_across_a_games_end(n_step: int) -> None:
    games = [FIRST, Step(0, 0.0), over(0.0, truncated=True)] + [
        Step(0, 1000.0, first=True),
        *[Step(0, 1000.0)] * 6,
    ]
    rows = play(games, n_step)
    assert all(row.r_t == 0.0 for row in rows if row.tm1.frame < 3)
    assert all((row.tm1.frame < 3) == (row.t.frame < 3) for row in rows)
    assert not any(row.t.frame == 3 for row in rows), (
        "no transition leads into a game's first frame"
    )


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_trap_tail_of_a_game_is_not_dropped(kind: str) -> None:
    last = over(1.0, **{kind: True})
    starts = [row.tm1.frame for row in play([FIRST, *[Step(0, 1.0)] * 9, last], 3)]
    assert starts == list(range(10))


def test_trap_shortened_rows_are_discounted_by_the_steps_they_took() -> None:
    rows = play([FIRST, *[Step(0, 1.0)] * 4, over(1.0, truncated=True)], 3)
    steps = [row.t.frame - row.tm1.frame for row in rows]
    assert steps == [3, 3, 3, 2, 1]
    assert [row.discount_t for row in rows] == pytest.approx([0.9**m for m in steps], abs=0)


def test_trap_done_is_not_applied_to_truncation() -> None:
    assert all(row.discount_t > 0 for row in play([FIRST, over(1.0, truncated=True)], 3))
    assert all(row.discount_t == 0 for row in play([FIRST, over(1.0, terminated=True)], 3))


# --- what else a row carries ----------------------------------------------------------------------


def test_row_keeps_the_moments_the_action_and_the_version_of_its_start() -> None:
    (row,) = play([Step(2, first=True), Step(1, 0.5), Step(0, 0.25)], 2)
    assert row.a_tm1 == 2
    assert row.version == (7, 0)
    assert row.tm1.q.tolist() == [0, 0, 0]
    assert row.t.q.tolist() == [2, 2, 2]
    assert (row.tm1.depth, row.t.depth) == (1, 3)


def test_rows_come_oldest_first() -> None:
    rows = play([FIRST, *[Step(0, 1.0)] * 3, over(1.0, terminated=True)], 4)
    assert [row.tm1.frame for row in rows] == [0, 1, 2, 3]


def test_action_after_a_games_end_is_void() -> None:
    rows = play([FIRST, over(1.0, terminated=True), FIRST, Step(0, 2.0)], 1)
    assert [row.tm1.frame for row in rows] == [0, 2]


def test_game_that_begins_inside_another_is_an_error() -> None:
    with pytest.raises(AssertionError, match="a game began while transitions of the one before"):
        play([FIRST, Step(0, 1.0), FIRST], 3)


def test_n_step_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="Expect `n_step` >= 1, actually: 0"):
        NStepAccumulator(n_step=0, gamma=0.99)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_outside_zero_to_one_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=f"Expect `gamma` from 0 to 1, actually: {gamma}"):
        NStepAccumulator(n_step=1, gamma=gamma)
