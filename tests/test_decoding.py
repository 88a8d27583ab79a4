from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from fakes import SPEC, make_replay, make_segment
from oracles import naive_stacks

from common.packing import pack_segment
from common.types import ObservationSpec, SampledRows
from replay.decoding import Decoder


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def decoder(threads: int) -> Iterator[Decoder]:
    decoder = Decoder(spec=SPEC, threads=threads)
    yield decoder
    decoder.close()


def sample_everything(
    *,
    spec: ObservationSpec = SPEC,
    per_blocks: tuple[int, ...] = (1, 2, 3, 7),
    transitions: int = 9,
) -> tuple[SampledRows, list[tuple[np.ndarray, np.ndarray]]]:
    """Return each stored row once, uniformly drawn in order, and the stacks it must become."""
    replay = make_replay(stack=spec.stack, capacity=len(per_blocks) * transitions)
    expected: list[tuple[np.ndarray, np.ndarray]] = []
    for sequence, per_block in enumerate(per_blocks):
        segment = make_segment(
            sequence=sequence, transitions=transitions, frames_per_block=per_block, spec=spec
        )
        replay.add(pack_segment(segment))
        expected += naive_stacks(segment, spec)
    reply = replay.sample(len(expected))
    assert reply.ids.tolist() == list(range(len(expected)))
    return reply, expected


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("stack", [1, 2, 4])
@pytest.mark.parametrize("per_blocks", [(1, 1), (2, 2), (4, 4), (50, 50), (1, 2, 3, 7)])
def test_rows_become_the_stacks_bit_for_bit(
    dtype: str, stack: int, per_blocks: tuple[int, ...], threads: int
) -> None:
    spec = ObservationSpec((2, 3), dtype, stack)
    reply, expected = sample_everything(spec=spec, per_blocks=per_blocks)
    decoder = Decoder(spec=spec, threads=threads)
    s_tm1, s_t = decoder.decode(reply)
    decoder.close()
    assert s_tm1.dtype == s_t.dtype == np.dtype(dtype)
    assert s_tm1.shape == s_t.shape == (len(expected), stack, 2, 3)
    np.testing.assert_array_equal(s_tm1, np.stack([one for one, _ in expected]))
    np.testing.assert_array_equal(s_t, np.stack([other for _, other in expected]))


def test_padding_at_a_games_start_is_zero(decoder: Decoder) -> None:
    reply, _ = sample_everything(per_blocks=(4,))
    # Memory that was used before: np.empty alone would often be zero by chance.
    for _ in range(3):
        s_tm1, s_t = decoder.decode(reply)
        assert not s_tm1[0, :3].any()
        assert s_tm1[0, 3].all()
        assert not s_t[0, :2].any()
        assert s_t[0, 2:].all()
        s_tm1[:], s_t[:] = 255, 255


def test_fewer_rows_than_threads(decoder: Decoder) -> None:
    reply, expected = sample_everything(per_blocks=(4,), transitions=1)
    s_tm1, s_t = decoder.decode(reply)
    np.testing.assert_array_equal(s_tm1[0], expected[0][0])
    np.testing.assert_array_equal(s_t[0], expected[0][1])


def test_no_rows_become_no_stacks(decoder: Decoder) -> None:
    s_tm1, s_t = decoder.decode(make_replay().sample(4))
    assert s_tm1.shape == s_t.shape == (0, *SPEC.shape)


def test_corrupt_block_is_an_error_in_every_thread(decoder: Decoder) -> None:
    reply, _ = sample_everything()
    corrupt = reply._replace(block_frames=reply.block_frames + 1)
    with pytest.raises(ValueError, match="Expect an lz4 block of"):
        decoder.decode(corrupt)


def test_corrupt_block_names_its_transition(decoder: Decoder) -> None:
    reply, _ = sample_everything()
    for row in (0, 17, 35):
        frames = reply.block_frames.copy()
        frames[reply.row_blocks[:row].sum()] += 1
        ids = reply.ids + 3 * 2**56
        match = rf"Expect an lz4 block of .*, in transition {ids[row]} of replay shard 3"
        with pytest.raises(ValueError, match=match):
            decoder.decode(reply._replace(ids=ids, block_frames=frames))


def test_read_only_reply_is_decoded(decoder: Decoder) -> None:
    """What comes out of Ray's object store cannot be written."""
    reply, expected = sample_everything()
    for field in reply:
        if isinstance(field, np.ndarray):
            field.flags.writeable = False
    s_tm1, _ = decoder.decode(reply)
    np.testing.assert_array_equal(s_tm1, np.stack([one for one, _ in expected]))
    assert s_tm1.flags.writeable
