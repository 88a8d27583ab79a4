"""The limiter with every message under way for a while: actors, shards and the learner at random.

test_rate_limiter.py has old views whose exchange is one step; test_sampler.py has the real sampler
and writers at a few settings. Here requests, replies and pushes are apart, at any legal setting.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limiter_settings import Setting, least_band, legal_settings

_PUSHES_UNDER_WAY = 3


class Told(NamedTuple):
    """What a request tells a shard of the run."""

    samples: int
    elsewhere: int


class Post:
    """Actors, K shards and a learner, with a queue for each kind of message and shard."""

    def __init__(self, setting: Setting, shards: int) -> None:
        self.setting = setting
        self.limiter = setting.limiter()
        self.samples = 0
        self.inserts = [0] * shards
        self.replied = [0] * shards  # as the learner last heard
        self.told = [Told(0, 0)] * shards
        self.requests: list[deque[Told]] = [deque() for _ in range(shards)]
        self.replies: list[deque[int]] = [deque() for _ in range(shards)]
        self.pushes: list[deque[int]] = [deque() for _ in range(shards)]
        self.moves = 0

    @property
    def error(self) -> float:
        return self.limiter.error(sum(self.inserts), self.samples)

    def send_push(self, shard: int, num: int) -> None:
        if len(self.pushes[shard]) < _PUSHES_UNDER_WAY:
            self.pushes[shard].append(num)

    def serve_push(self, shard: int) -> None:
        """Let a push arrive; one that is answered "not yet" is sent again."""
        if self.pushes[shard]:
            num = self.pushes[shard].popleft()
            seen = self.inserts[shard] + self.told[shard].elsewhere
            if self.limiter.can_insert(seen, self.told[shard].samples, num):
                self.inserts[shard] += num
                self.moves += 1
            else:
                self.pushes[shard].append(num)

    def serve_request(self, shard: int) -> None:
        if self.requests[shard]:
            self.told[shard] = self.requests[shard].popleft()
            self.replies[shard].append(self.inserts[shard])

    def receive(self, shard: int) -> None:
        if self.replies[shard]:
            self.replied[shard] = self.replies[shard].popleft()

    def sample(self, num: int, shards: list[int]) -> bool:
        """Ask these shards for rows, if what the learner heard allows it."""
        if not self.limiter.can_sample(sum(self.replied), self.samples, num):
            return False
        self.samples += num
        self.moves += 1
        self.request(shards)
        return True

    def request(self, shards: list[int]) -> None:
        for shard in shards:
            elsewhere = sum(self.replied) - self.replied[shard]
            self.requests[shard].append(Told(self.samples, elsewhere))

    def turn(self) -> None:
        """Let everything under way arrive, and everyone try."""
        shards = range(len(self.inserts))
        for shard in shards:
            while self.requests[shard]:
                self.serve_request(shard)
            self.send_push(shard, self.setting.push)
            for _ in range(len(self.pushes[shard])):
                self.serve_push(shard)
            while self.replies[shard]:
                self.receive(shard)
        if not self.sample(self.setting.batch, list(shards)):
            self.request(list(shards))


def play(post: Post, rng: np.random.Generator, moves: int) -> None:
    """Make random moves, and see that the error stays where it is promised to."""
    setting, shards = post.setting, len(post.inserts)
    for kind, shard in rng.integers([7, shards], size=(moves, 2)).tolist():
        if kind == 0:
            post.send_push(shard, int(rng.integers(1, setting.push + 1)))
        elif kind == 1:
            asked = rng.permutation(shards)[: rng.integers(1, shards + 1)]
            post.sample(int(rng.integers(1, setting.batch + 1)), asked.tolist())
        elif kind == 2:
            post.request([shard])
        elif kind == 3:
            post.serve_request(shard)
        elif kind == 4:
            post.receive(shard)
        else:
            post.serve_push(shard)
        expect_in_band(post)


def expect_in_band(post: Post) -> None:
    """The learner never runs ahead; nor do the actors where one shard knows all inserts."""
    setting = post.setting
    if sum(post.inserts) >= setting.min_size:
        assert post.error >= -setting.band
        if len(post.inserts) == 1:
            assert post.error <= setting.band


def longest_standstill(post: Post, turns: int) -> int:
    """Return over how many turns on end nobody moved."""
    longest = still = 0
    for _ in range(turns):
        moves = post.moves
        post.turn()
        expect_in_band(post)
        still = still + 1 if post.moves == moves else 0
        longest = max(longest, still)
    return longest


@given(
    setting=legal_settings(most_min_size=20_000),
    shards=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_messages_under_way_neither_stop_the_run_nor_let_it_leave_the_band(
    setting: Setting, shards: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    post = Post(setting, shards)
    for _ in range(3):
        play(post, rng, 120)
        # Two turns make all counts exact, so the third has to bring a move.
        assert longest_standstill(post, 15) <= 2, (setting, post.inserts, post.samples, post.error)


@pytest.mark.parametrize("shards", [1, 3])
def test_band_below_the_legal_one_stops_the_run(shards: int) -> None:
    """The known-bad: a push that is never served and a batch that is never ready."""
    legal = Setting(1000, 8.0, 512, 400, least_band(8.0, 512, 400))
    illegal = legal._replace(band=1600.0)
    standstills = []
    for setting in (legal, illegal):
        post = Post(setting, shards)
        play(post, np.random.default_rng(0), 2000)
        standstills.append(longest_standstill(post, 300))
    assert standstills[0] <= 2
    assert standstills[1] > 100
