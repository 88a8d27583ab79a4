from __future__ import annotations

import numpy as np
import pytest
from fakes import SPEC, coded_frame, frame_code
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import Step, naive_depths, naive_n_step, naive_stacks

from actors.n_step import Moment, Row
from actors.segments import FirstPriority, SegmentWriter
from common.packing import check_segment
from common.types import ObservationSpec, Segment, SegmentName


def make_writer(
    *,
    spec: ObservationSpec = SPEC,
    n_step: int = 1,
    segment_transitions: int = 5,
    frames_per_block: int = 4,
    first_priority: FirstPriority | None = None,
) -> SegmentWriter:
    return SegmentWriter(
        spec=spec,
        n_step=n_step,
        segment_transitions=segment_transitions,
        frames_per_block=frames_per_block,
        first_priority=first_priority,
    )


def row(tm1: int, t: int, depth_tm1: int = 4, depth_t: int = 4) -> Row:
    q = np.array([tm1, -1.0], np.float32)
    return Row(
        tm1=Moment(tm1, depth_tm1, q),
        a_tm1=tm1 % 2,
        r_t=float(tm1),
        discount_t=0.5,
        t=Moment(t, depth_t, np.array([t, -1.0], np.float32)),
        version=(1, tm1),
    )


def write_stream(
    writer: SegmentWriter, spec: ObservationSpec, steps: list[Step], n_step: int
) -> tuple[list[Segment], list[tuple[int, int]]]:
    """Feed a stream as ActorLoop does; return what was cut and the spans of all rows.

    The frame of timestep t is coded (0, t // 200, t % 200).
    """
    depths = naive_depths(steps, spec.stack)
    transitions = naive_n_step(steps, n_step, 0.9)
    segments: list[Segment] = []
    added = 0
    for t in range(len(steps)):
        assert writer.append(coded_frame(spec, 0, t // 200, t % 200)) == t
        while added < len(transitions) and transitions[added].t == t:
            start, end, action, r_t, discount_t = transitions[added]
            q = np.zeros(3, np.float32)
            moments = Moment(start, depths[start], q), Moment(end, depths[end], q)
            writer.add(Row(moments[0], action, r_t, discount_t, moments[1], (0, start)))
            added += 1
        if writer.full:
            segments.append(writer.cut(SegmentName(0, 0, len(segments))))
    return segments, [(one.tm1, one.t) for one in transitions[:added]]


def expected_stack(spec: ObservationSpec, newest: int, depth: int) -> NDArray:
    stack = np.zeros(spec.shape, spec.dtype)
    for back in range(depth):
        t = newest - back
        stack[spec.stack - 1 - back] = coded_frame(spec, 0, t // 200, t % 200)
    return stack


def test_writer_is_full_after_as_many_rows_as_a_segment_has() -> None:
    writer = make_writer(segment_transitions=2)
    for t in range(3):
        writer.append(coded_frame(SPEC, 0, 0, t))
    writer.add(row(0, 1, 1, 2))
    assert not writer.full
    writer.add(row(1, 2, 2, 3))
    assert writer.full
    writer.cut(SegmentName(0, 0, 0))
    assert not writer.full


def test_segment_starts_at_its_oldest_frame_and_counts_from_there() -> None:
    writer = make_writer(segment_transitions=2)
    for t in range(9):
        writer.append(coded_frame(SPEC, 0, 0, t))
    writer.add(row(5, 6))
    writer.add(row(6, 8))
    segment = writer.cut(SegmentName(3, 1, 4))
    assert segment.name == SegmentName(3, 1, 4)
    oldest = 5 - (4 - 1)
    assert segment.num_frames == 8 - oldest + 1
    assert segment.newest_tm1.tolist() == [5 - oldest, 6 - oldest]
    assert segment.newest_t.tolist() == [6 - oldest, 8 - oldest]
    assert segment.a_tm1.tolist() == [1, 0]
    assert segment.r_t.tolist() == [5.0, 6.0]
    assert segment.discount_t.tolist() == [0.5, 0.5]
    assert segment.weights_version.tolist() == [[1, 5], [1, 6]]
    (s_tm1, s_t), _ = naive_stacks(segment, SPEC)
    assert [frame_code(frame) for frame in s_tm1] == [(0, 0, t) for t in (2, 3, 4, 5)]
    assert [frame_code(frame) for frame in s_t] == [(0, 0, t) for t in (3, 4, 5, 6)]


def test_shallow_stacks_of_a_new_game_take_no_frame_of_the_one_before() -> None:
    writer = make_writer(segment_transitions=1)
    for t in range(6):
        writer.append(coded_frame(SPEC, 0, 0, t))
    writer.add(row(4, 5, depth_tm1=1, depth_t=2))
    segment = writer.cut(SegmentName(0, 0, 0))
    assert segment.num_frames == 2
    ((s_tm1, s_t),) = naive_stacks(segment, SPEC)
    assert [frame_code(frame) for frame in s_tm1] == [None, None, None, (0, 0, 4)]
    assert [frame_code(frame) for frame in s_t] == [None, None, (0, 0, 4), (0, 0, 5)]


def test_frames_that_the_next_segment_needs_are_stored_again() -> None:
    steps = [Step(0, first=True), *[Step(0)] * 20]
    segments, _ = write_stream(make_writer(), SPEC, steps, 1)
    assert len(segments) == 4
    second = naive_stacks(segments[1], SPEC)
    assert [frame_code(frame) for frame in second[0][0]] == [(0, 0, t) for t in (2, 3, 4, 5)]
    # Rows 5..9 reach from frame 5 - 3 to frame 10.
    assert segments[1].num_frames == 10 - 2 + 1


def test_without_a_first_priority_every_priority_is_one() -> None:
    writer = make_writer(segment_transitions=1)
    for t in range(2):
        writer.append(coded_frame(SPEC, 0, 0, t))
    writer.add(row(0, 1, 1, 2))
    segment = writer.cut(SegmentName(0, 0, 0))
    assert segment.priority.tolist() == [1.0]
    assert segment.priority.dtype == np.float32


def test_first_priority_is_asked_with_the_rows_of_the_segment() -> None:
    asked = []

    def priority(*columns: NDArray) -> NDArray[np.float32]:
        asked.append(columns)
        return columns[2] * 10

    writer = make_writer(segment_transitions=2, first_priority=priority)
    for t in range(4):
        writer.append(coded_frame(SPEC, 0, 0, t))
    for tm1 in range(3):
        writer.add(row(tm1, tm1 + 1, tm1 + 1, tm1 + 2))
    segment = writer.cut(SegmentName(0, 0, 0))
    ((q_tm1, a_tm1, r_t, discount_t, q_t),) = asked
    assert q_tm1.tolist() == [[0, -1], [1, -1]]
    assert a_tm1.tolist() == [0, 1]
    assert r_t.tolist() == [0, 1]
    assert discount_t.tolist() == [0.5, 0.5]
    assert q_t.tolist() == [[1, -1], [2, -1]]
    assert [array.dtype for array in (q_tm1, a_tm1, r_t)] == [np.float32, np.int32, np.float32]
    assert segment.priority.tolist() == [0 * 10, 1 * 10]


def test_caller_may_reuse_the_array_of_a_frame() -> None:
    writer = make_writer(segment_transitions=1)
    frame = coded_frame(SPEC, 0, 0, 0)
    writer.append(frame)
    frame[:] = 0
    writer.append(coded_frame(SPEC, 0, 0, 1))
    writer.add(row(0, 1, 1, 2))
    ((s_tm1, _),) = naive_stacks(writer.cut(SegmentName(0, 0, 0)), SPEC)
    assert frame_code(s_tm1[-1]) == (0, 0, 0)


@st.composite
def streams(draw: st.DrawFn) -> list[Step]:
    """Up to 190 timesteps of games, many of them of one or two steps."""
    steps: list[Step] = []
    for length in draw(st.lists(st.sampled_from([1, 1, 1, 2, 3, 8, 30]), min_size=1, max_size=40)):
        lives = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]))
        rng = np.random.default_rng(draw(st.integers(0, 1000)))
        steps.append(Step(0, first=True))
        for _ in range(length - 1):
            steps.append(Step(0, 1.0, terminated=bool(rng.random() < lives)))
        terminated = draw(st.booleans())
        steps.append(Step(0, 1.0, terminated, truncated=not terminated, game_over=True))
    return steps[:190]


@given(
    steps=streams(),
    n_step=st.integers(1, 5),
    segment_transitions=st.integers(1, 12),
    stack=st.integers(1, 4),
    frames_per_block=st.integers(1, 6),
    dtype=st.sampled_from(["uint8", "float32"]),
)
@settings(max_examples=150, deadline=None)
def test_any_stream_is_cut_into_segments_that_hold_all_their_frames(
    steps: list[Step],
    n_step: int,
    segment_transitions: int,
    stack: int,
    frames_per_block: int,
    dtype: str,
) -> None:
    spec = ObservationSpec((2, 3), dtype, stack)
    writer = make_writer(
        spec=spec,
        n_step=n_step,
        segment_transitions=segment_transitions,
        frames_per_block=frames_per_block,
    )
    segments, rows = write_stream(writer, spec, steps, n_step)
    depths = naive_depths(steps, stack)
    cut = 0
    for segment in segments:
        check_segment(segment, stack)
        assert segment.num_transitions == segment_transitions
        for s_tm1, s_t in naive_stacks(segment, spec):
            tm1, t = rows[cut]
            np.testing.assert_array_equal(s_tm1, expected_stack(spec, tm1, depths[tm1]))
            np.testing.assert_array_equal(s_t, expected_stack(spec, t, depths[t]))
            assert segment.weights_version[cut % segment_transitions].tolist() == [0, tm1]
            cut += 1
    # One cut a timestep is enough: what waits is less than a segment and what one end closes.
    assert len(rows) - cut < segment_transitions + n_step


def test_games_of_one_step_fit_the_buffer_for_ever() -> None:
    """Two frames for each row: the most that a stream can hold."""
    one_step_game = [Step(0, first=True), Step(0, 1.0, terminated=True, game_over=True)]
    for segment_transitions in (1, 7, 40):
        writer = make_writer(n_step=3, segment_transitions=segment_transitions)
        segments, rows = write_stream(writer, SPEC, one_step_game * 150, 3)
        assert len(segments) == len(rows) // segment_transitions


def test_segments_shorter_than_a_return_catch_up_after_each_end() -> None:
    games = [
        Step(0, first=True),
        *[Step(0)] * 6,
        Step(0, 1.0, terminated=True, game_over=True),
    ] * 30
    segments, rows = write_stream(make_writer(n_step=5, segment_transitions=1), SPEC, games, 5)
    assert len(rows) - len(segments) < 1 + 5
    starts = [int(segment.weights_version[0, 1]) for segment in segments]
    assert starts == [tm1 for tm1, _ in rows[: len(starts)]]


def test_frame_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="could not broadcast"):
        make_writer().append(np.zeros((3, 3), np.uint8))
