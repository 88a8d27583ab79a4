from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fakes import (
    SPEC,
    Beat,
    RandomPolicy,
    RecordingEnvironments,
    ScriptedEnvironments,
    frame_code,
    game,
    make_weights,
    random_script,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import naive_stacks, seen_transitions

from actors.actor_loop import ActorLoop
from actors.exploration import Exploration
from actors.priority import first_priority
from common.heads import QHead
from common.packing import check_segment
from common.types import ObservationSpec, Segment, Weights, WeightsVersion

VERSION = WeightsVersion(incarnation=2, learner_step=30)


def make_loop(
    script: Callable[[int, int], Sequence[Beat]],
    *,
    num_envs: int = 1,
    observation: ObservationSpec = SPEC,
    version: WeightsVersion | None = VERSION,
    **changes: Any,
) -> tuple[ActorLoop, RecordingEnvironments, RandomPolicy]:
    environments = RecordingEnvironments(
        ScriptedEnvironments(script=script, num_envs=num_envs, observation=observation)
    )
    policy = RandomPolicy(num_envs=num_envs, num_actions=3, seed=0)
    arguments: dict[str, Any] = {
        "environments": environments,
        "policy": policy,
        "exploration": Exploration(
            lambda agent_steps: np.linspace(0.1, 0.9, num_envs) / (1 + agent_steps),
            [e / num_envs for e in range(num_envs)],
        ),
        "n_step": 3,
        "gamma": 0.9,
        "clip_rewards": True,
        "life_loss_reward": 0.0,
        "segment_transitions": 4,
        "frames_per_block": 4,
        "first_priority": None,
        "actor": 5,
        "incarnation": 1,
    }
    loop = ActorLoop(**(arguments | changes))
    if version is not None:
        loop.take(Weights(version, np.zeros(0, np.uint8), agent_steps=0))
    return loop, environments, policy


def by_environment(segments: list[Segment], spec: ObservationSpec) -> dict[int, list[Any]]:
    """Return each environment's rows in the order they came: (s_tm1, s_t, segment, row)."""
    rows: dict[int, list[Any]] = {}
    for segment in segments:
        for i, (s_tm1, s_t) in enumerate(naive_stacks(segment, spec)):
            code = frame_code(s_tm1[-1])
            assert code is not None
            rows.setdefault(code[0], []).append((s_tm1, s_t, segment, i))
    return rows


def td(q_tm1: NDArray, a_tm1: int, r_t: float, discount_t: float, q_t: NDArray) -> float:
    return abs(r_t + discount_t * float(q_t.max()) - float(q_tm1[a_tm1]))


@given(
    seed=st.integers(0, 2**31),
    num_envs=st.integers(1, 3),
    longest=st.sampled_from([1, 2, 5, 20]),
    n_step=st.integers(1, 5),
    stack=st.integers(1, 4),
    segment_transitions=st.integers(1, 9),
    clip_rewards=st.booleans(),
    chunks=st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_any_games_come_out_as_the_transitions_that_were_seen(
    seed: int,
    num_envs: int,
    longest: int,
    n_step: int,
    stack: int,
    segment_transitions: int,
    clip_rewards: bool,
    chunks: list[int],
) -> None:
    spec = ObservationSpec((2, 3), "uint8", stack)
    loop, record, policy = make_loop(
        random_script(seed, longest),
        num_envs=num_envs,
        observation=spec,
        n_step=n_step,
        segment_transitions=segment_transitions,
        clip_rewards=clip_rewards,
        first_priority=functools.partial(first_priority, QHead.first_priority),
    )
    segments, versions = [], []
    for step, chunk in enumerate(chunks):
        loop.take(make_weights(step, incarnation=1))
        versions += [step] * chunk
        segments += loop.collect(chunk)
    for segment in segments:
        check_segment(segment, stack)
    rows = by_environment(segments, spec)
    for e in range(num_envs):
        seen = seen_transitions(
            record.timesteps,
            record.actions,
            e,
            n_step=n_step,
            gamma=0.9,
            clip_rewards=clip_rewards,
        )
        mine = rows.get(e, [])
        # What is not out yet is less than a segment and what one game's end closes.
        assert len(seen) - segment_transitions - n_step < len(mine) <= len(seen)
        for (s_tm1, s_t, segment, i), expected in zip(mine, seen, strict=False):
            np.testing.assert_array_equal(s_tm1, expected.s_tm1)
            np.testing.assert_array_equal(s_t, expected.s_t)
            assert segment.a_tm1[i] == expected.a_tm1
            assert segment.r_t[i] == pytest.approx(expected.r_t, rel=1e-6, abs=1e-6)
            assert segment.discount_t[i] == np.float32(expected.discount_t)
            assert segment.weights_version[i].tolist() == [1, versions[expected.tm1]]
            q_tm1, q_t = policy.q[expected.tm1][e], policy.q[expected.t][e]
            error = td(q_tm1, expected.a_tm1, expected.r_t, expected.discount_t, q_t)
            assert segment.priority[i] == pytest.approx(error, rel=1e-4, abs=1e-5)


def test_two_environments_by_hand() -> None:
    games = [game(1.0, 5.0, end="truncated"), game(-3.0, 0.25)]
    loop, record, _ = make_loop(lambda e, _: games[e], num_envs=2, segment_transitions=2)
    segments = loop.collect(3)  # sees timesteps 0, 1 and 2: both games whole
    assert [segment.name.sequence for segment in segments] == [0, 1]
    cut, died = segments
    assert cut.r_t == pytest.approx([1.0 + 0.9 * 1.0, 1.0])
    assert cut.discount_t == pytest.approx([0.9**2, 0.9**1])
    assert died.r_t == pytest.approx([-1.0 + 0.9 * 0.25, 0.25])
    assert died.discount_t.tolist() == [0.0, 0.0]
    taken = np.array(record.actions)
    assert cut.a_tm1.tolist() == taken[:2, 0].tolist()
    assert died.a_tm1.tolist() == taken[:2, 1].tolist()
    assert [frame_code(f) for f in naive_stacks(died, SPEC)[1][1]] == [
        None,
        (1, 0, 0),
        (1, 0, 1),
        (1, 0, 2),
    ]


def test_life_loss_keeps_the_frames_of_the_game_in_the_stack() -> None:
    loop, _, _ = make_loop(
        lambda *_: game(*[0.0] * 6, lives_lost_at=[2]), n_step=1, segment_transitions=6
    )
    (segment,) = loop.collect(7)
    assert (segment.discount_t == 0).tolist() == [False, False, True, False, False, True]
    after = naive_stacks(segment, SPEC)[3][0]
    assert [frame_code(frame) for frame in after] == [(0, 0, step) for step in (0, 1, 2, 3)]


def test_fake_step_after_a_game_enters_nothing() -> None:
    loop, record, _ = make_loop(lambda *_: game(1.0), n_step=1, segment_transitions=1)
    segments = loop.collect(20)
    real = sum(not seen.game_over[0] for seen in record.timesteps[:19])
    assert len(segments) == real == 20 / 2
    assert [segment.r_t.tolist() for segment in segments] == [[1.0]] * 10


def test_collect_takes_so_many_steps_of_each_environment() -> None:
    loop, record, policy = make_loop(random_script(0, 9), num_envs=2)
    loop.collect(7)
    loop.collect(5)
    assert len(record.actions) == len(policy.q) == 7 + 5


def test_acting_without_weights_is_refused() -> None:
    loop, record, _ = make_loop(random_script(0, 9), version=None)
    with pytest.raises(RuntimeError, match="Expect `take` before `collect`"):
        loop.collect(1)
    assert not record.actions


def test_segments_are_named_in_the_order_of_the_pushes() -> None:
    loop, _, _ = make_loop(random_script(1, 9), num_envs=3)
    names = [segment.name for segment in loop.collect(30) + loop.collect(30)]
    assert names == [(5, 1, sequence) for sequence in range(len(names))]
    assert len(names) > 10


def test_trap_segments_of_a_restarted_actor_have_other_names() -> None:
    names = []
    for incarnation in range(2):
        loop, _, _ = make_loop(random_script(1, 9), incarnation=incarnation)
        names += [segment.name for segment in loop.collect(40)]
    assert len(set(names)) == len(names)
    assert {name.actor for name in names} == {5}


@pytest.mark.parametrize(
    ("clip_rewards", "expected"),
    [(True, 1.0 + 0.9 * 1.0 + 0.9**2 * -1.0), (False, 7.0 + 0.9 * 7.0 + 0.9**2 * -10.0)],
)
def test_rewards_are_clipped_before_they_are_summed(clip_rewards: bool, expected: float) -> None:
    loop, _, _ = make_loop(lambda *_: game(7.0, 7.0, -10.0, 0.5), clip_rewards=clip_rewards)
    (segment,) = loop.collect(5)
    assert segment.r_t[0] == pytest.approx(expected)


def test_trap_reported_return_is_raw_and_of_whole_games() -> None:
    games = [game(7.0, -2.5, 10.0, lives_lost_at=[0, 1]), game(1.0, end="truncated")]
    loop, _, policy = make_loop(lambda e, _: games[e], num_envs=2)
    loop.collect(4)
    whole, cut, again = sorted(loop.drain_episodes(), key=lambda e: -e.episode_return)
    assert whole == (7.0 - 2.5 + 10.0, 3, policy.epsilons[0], 0 / 2)
    assert cut == again == (1.0, 1, policy.epsilons[1], 1 / 2)


def test_episodes_are_drained_once() -> None:
    loop, _, _ = make_loop(lambda *_: game(1.0, 2.0))
    loop.collect(3)
    assert [episode.episode_return for episode in loop.drain_episodes()] == [1.0 + 2.0]
    assert loop.drain_episodes() == ()
    loop.collect(3)
    assert [episode.agent_steps for episode in loop.drain_episodes()] == [2]


def test_episode_says_the_epsilon_that_held_when_it_ended() -> None:
    loop, _, policy = make_loop(lambda *_: game(1.0, 2.0))
    loop.collect(1)
    weights = make_weights(3, agent_steps=9)
    loop.take(weights)
    assert policy.loaded[-1] is weights.buffer
    loop.collect(2)
    assert [episode.epsilon for episode in loop.drain_episodes()] == [0.1 / (1 + 9)]
    assert loop.epsilon == 0.1 / (1 + 9)


def test_phases_name_where_the_time_went_and_start_again() -> None:
    loop, _, _ = make_loop(random_script(0, 9))
    loop.collect(3)
    with loop.waiting(), loop.pushing():
        pass
    phases = dict(loop.drain_phases().phases)
    assert set(phases) == {"inference", "accumulate", "pack", "environment", "wait", "push"}
    assert all(seconds >= 0 for seconds in phases.values())
    assert loop.drain_phases().phases == ()


def test_same_seeds_give_the_same_segments() -> None:
    first, second = (
        make_loop(
            random_script(4, 9),
            num_envs=2,
            first_priority=functools.partial(first_priority, QHead.first_priority),
        )[0].collect(50)
        for _ in range(2)
    )
    assert len(first) == len(second) > 10
    for one, other in zip(first, second, strict=True):
        assert one.name == other.name
        for field in ("blocks", "block_ends", "r_t", "a_tm1", "priority", "newest_t"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


# --- actors.priority ------------------------------------------------------------------------------


def test_first_priority_is_the_absolute_n_step_td_error() -> None:
    priority = first_priority(
        QHead.first_priority,
        np.array([[1.0, 2.0], [3.0, -4.0], [5.0, 0.0]], np.float32),
        np.array([1, 0, 0], np.int32),
        np.array([0.5, -1.0, 1.0], np.float32),
        np.array([0.9, 0.0, 0.81], np.float32),
        np.array([[10.0, -7.0], [99.0, 99.0], [2.0, 4.0]], np.float32),
    )
    expected = [
        abs(0.5 + 0.9 * 10.0 - 2.0),
        abs(-1.0 + 0.0 * 99.0 - 3.0),
        abs(1.0 + 0.81 * 4.0 - 5.0),
    ]
    assert priority.dtype == np.float32
    assert priority == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("clip_rewards", "learned"),
    [
        (True, [1.0, -1.0, 1.0, -1.0]),
        (False, [5.0, 0.0 - 1.0, 3.0 - 1.0, -0.5 - 1.0]),
    ],
)
def test_lost_life_is_punished_in_what_is_learned_and_in_no_return(
    clip_rewards: bool, learned: list[float]
) -> None:
    """The sum is clipped, so that a reward of 3 with a lost life still counts as 1."""
    lives = game(5.0, 0.0, 3.0, -0.5, lives_lost_at=(1, 2, 3))
    loop, _, _ = make_loop(
        lambda env, number: lives,
        num_envs=1,
        n_step=1,
        clip_rewards=clip_rewards,
        life_loss_reward=-1.0,
    )
    (segment,) = loop.collect(5)
    assert segment.r_t.tolist() == learned
    assert segment.discount_t.tolist() == [pytest.approx(0.9), 0.0, 0.0, 0.0]
    (episode,) = loop.drain_episodes()
    assert episode.episode_return == 5.0 + 0.0 + 3.0 - 0.5
