"""Stand-ins for the parts around the one under test, one per role; deterministic and small."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.compression import compress_frames
from common.config import Config
from common.networks import flatten_state
from common.packing import pack_segment
from common.types import (
    EnvironmentSpec,
    LearnerCounts,
    ObservationSpec,
    PhaseSeconds,
    PriorityUpdate,
    Push,
    SampleReply,
    Segment,
    SegmentName,
    ShardCounts,
    TimeSteps,
    Weights,
    WeightsVersion,
)
from driver.plan import Plan
from driver.run_folder import RunFolder
from driver.view.reporter import Before
from replay.handles import ShardLost
from replay.prioritized import PrioritizedReplay
from replay.rate_limiter import RateLimiter
from replay.shard import ReplayShard
from replay.storage import SegmentStorage

SPEC = ObservationSpec(frame_shape=(2, 3), dtype="uint8", stack=4)
NO_LIMIT = RateLimiter(min_size=1, samples_per_insert=None, band=1.0)
NO_PHASES = PhaseSeconds(())
NOTHING_LEARNED = LearnerCounts(samples=0, inserts_elsewhere=0, version=None)


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


# --- environments ---------------------------------------------------------------------------------


class Beat(NamedTuple):
    """What one agent step of a scripted game answers."""

    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    game_over: bool = False
    life_lost: bool = False


def game(*rewards: float, end: str = "terminated", lives_lost_at: Sequence[int] = ()) -> list[Beat]:
    """Return a game of one step for each reward.

    Args:
      rewards: raw.
      end: how the last step ends it: "terminated", "truncated" or "both".
      lives_lost_at: steps (from 0) that lose a life and do not end the game.
    """
    lost = [step in lives_lost_at for step in range(len(rewards))]
    beats = [Beat(r, terminated=x, life_lost=x) for r, x in zip(rewards, lost, strict=True)]
    last = beats[-1]
    beats[-1] = Beat(
        last.reward,
        terminated=last.terminated or end in ("terminated", "both"),
        truncated=end in ("truncated", "both"),
        game_over=True,
        life_lost=last.life_lost,
    )
    return beats


def random_game(rng: np.random.Generator, longest: int) -> list[Beat]:
    """Return a game of 1..longest steps with random rewards, lost lives and a random end."""
    steps = int(rng.integers(1, longest + 1))
    lost = np.flatnonzero(rng.random(steps) < 0.15).tolist()
    rewards = np.round(rng.normal(0.0, 2.0, steps), 2).tolist()
    end = str(rng.choice(["terminated", "truncated", "both"]))
    return game(*rewards, end=end, lives_lost_at=lost)


def random_script(seed: int, longest: int) -> Callable[[int, int], list[Beat]]:
    """Return a script whose games are random but the same each time one asks."""
    return lambda env, number: random_game(np.random.default_rng([seed, env, number]), longest)


def coded_frame(spec: ObservationSpec, env: int, number: int, step: int) -> NDArray:
    """Return a frame, never 0, that says which it is; see `frame_code`."""
    size = int(np.prod(spec.frame_shape))
    assert size >= 3 and max(env, number, step) < 255, (env, number, step)
    frame = np.full(size, 7 + (31 * env + 17 * number + step) % 97, spec.dtype)
    frame[:3] = env + 1, number + 1, step + 1
    return frame.reshape(spec.frame_shape)


def frame_code(frame: NDArray) -> tuple[int, int, int] | None:
    """Return (environment, game, step) of a coded frame, None of a zero one."""
    env, number, step = (int(value) - 1 for value in frame.ravel()[:3])
    return None if env < 0 else (env, number, step)


class ScriptedEnvironments:
    """E environments that play written games; they autoreset as actors.environments says."""

    def __init__(
        self,
        *,
        script: Callable[[int, int], Sequence[Beat]],
        num_envs: int,
        observation: ObservationSpec = SPEC,
        num_actions: int = 3,
    ) -> None:
        """Prepare to play; `script(environment, game)` is that game's steps."""
        self.spec = EnvironmentSpec("scripted", observation, num_actions, 1, "a script")
        self.num_envs = num_envs
        self.closed = False
        self._script = script
        self._games = [-1] * num_envs
        self._steps = [0] * num_envs
        self._beats: list[Sequence[Beat]] = [()] * num_envs
        self._over = [True] * num_envs
        self._stacks = np.zeros((num_envs, *observation.shape), observation.dtype)

    def reset(self) -> TimeSteps:
        self._over = [True] * self.num_envs
        return self.step(np.zeros(self.num_envs, np.int64))

    def step(self, actions: NDArray[np.int64]) -> TimeSteps:
        assert actions.shape == (self.num_envs,) and actions.dtype == np.int64
        first = np.array(self._over)
        beats = [self._open(e) if self._over[e] else self._advance(e) for e in range(self.num_envs)]
        self._over = [beat.game_over for beat in beats]
        return TimeSteps(
            observation=self._stacks.copy(),
            reward=np.array([beat.reward for beat in beats], np.float32),
            terminated=np.array([beat.terminated for beat in beats]),
            truncated=np.array([beat.truncated for beat in beats]),
            first=first,
            game_over=np.array(self._over),
            life_lost=np.array([beat.life_lost for beat in beats]),
        )

    def close(self) -> None:
        self.closed = True

    def _open(self, e: int) -> Beat:
        self._games[e] += 1
        self._steps[e] = 0
        self._beats[e] = self._script(e, self._games[e])
        assert [beat.game_over for beat in self._beats[e]].index(True) == len(self._beats[e]) - 1
        self._stacks[e] = 0
        self._show(e)
        return Beat()

    def _advance(self, e: int) -> Beat:
        self._steps[e] += 1
        self._show(e)
        return self._beats[e][self._steps[e] - 1]

    def _show(self, e: int) -> None:
        self._stacks[e, :-1] = self._stacks[e, 1:]
        self._stacks[e, -1] = coded_frame(self.spec.observation, e, self._games[e], self._steps[e])


class RecordingEnvironments:
    """Passes everything on and keeps copies: `timesteps[t]`, and `actions[t]` taken there."""

    def __init__(self, environments: Any) -> None:
        self._environments = environments
        self.spec: EnvironmentSpec = environments.spec
        self.num_envs: int = environments.num_envs
        self.timesteps: list[TimeSteps] = []
        self.actions: list[NDArray[np.int64]] = []

    def reset(self) -> TimeSteps:
        return self._record(self._environments.reset())

    def step(self, actions: NDArray[np.int64]) -> TimeSteps:
        self.actions.append(actions.copy())
        return self._record(self._environments.step(actions))

    def close(self) -> None:
        self._environments.close()

    def _record(self, timesteps: TimeSteps) -> TimeSteps:
        self.timesteps.append(TimeSteps._make(field.copy() for field in timesteps))
        return timesteps


class RandomPolicy:
    """Acts and values at random; `q` keeps what it said, one float32[E, A] per call."""

    def __init__(self, *, num_envs: int, num_actions: int, seed: int) -> None:
        self.epsilons = np.linspace(0.1, 0.9, num_envs)
        self.q: list[NDArray[np.float32]] = []
        self.loaded: list[NDArray[np.uint8]] = []
        self._num_actions = num_actions
        self._rng = np.random.default_rng(seed)

    def load(self, buffer: NDArray[np.uint8]) -> None:
        self.loaded.append(buffer)

    def set_epsilons(self, epsilons: NDArray[np.float64]) -> None:
        self.epsilons = epsilons

    def act(self, observation: NDArray) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        num_envs = len(observation)
        q = self._rng.normal(size=(num_envs, self._num_actions)).astype(np.float32)
        self.q.append(q.copy())
        return self._rng.integers(self._num_actions, size=num_envs), q


def make_weights(
    learner_step: int, *, incarnation: int = 0, agent_steps: int = 0, network: Any = None
) -> Weights:
    """Return a version of a network's weights, or of none where nobody looks at them."""
    buffer = np.zeros(0, np.uint8) if network is None else flatten_state(network)
    return Weights(WeightsVersion(incarnation, learner_step), buffer, agent_steps)


# --- segments and shards --------------------------------------------------------------------------


def make_segment(
    *,
    actor: int = 0,
    incarnation: int = 0,
    sequence: int = 0,
    transitions: int = 5,
    priority: Sequence[float] | float = 1.0,
    spec: ObservationSpec = SPEC,
    frames_per_block: int = 4,
    learner_step: int = 0,
) -> Segment:
    """Return one game as 1-step transitions; its frames say (actor, sequence % 250, step)."""
    frames = np.stack(
        [coded_frame(spec, actor, sequence % 250, step) for step in range(transitions + 1)]
    )
    blocks, block_ends = compress_frames(frames, frames_per_block)
    steps = np.arange(transitions)
    discount_t = np.full(transitions, 0.99, np.float32)
    discount_t[-1] = 0.0
    return Segment(
        name=SegmentName(actor, incarnation, sequence),
        blocks=blocks,
        block_ends=block_ends,
        num_frames=transitions + 1,
        frames_per_block=frames_per_block,
        newest_tm1=steps.astype(np.int32),
        newest_t=(steps + 1).astype(np.int32),
        depth_tm1=np.minimum(steps + 1, spec.stack).astype(np.uint8),
        depth_t=np.minimum(steps + 2, spec.stack).astype(np.uint8),
        a_tm1=(steps % 3).astype(np.int32),
        r_t=(steps + sequence / 10).astype(np.float32),
        discount_t=discount_t,
        priority=np.broadcast_to(np.asarray(priority, np.float32), (transitions,)).copy(),
        weights_version=np.tile(np.array([[0, learner_step]], np.int64), (transitions, 1)),
    )


def make_push(
    *segments: Segment,
    episodes: tuple = (),
    phases: PhaseSeconds = NO_PHASES,
    epsilon: float = 0.5,
) -> Push:
    """Return a push of these segments."""
    return Push(
        segments=tuple(pack_segment(segment) for segment in segments),
        transitions=sum(segment.num_transitions for segment in segments),
        episodes=episodes,
        phases=phases,
        epsilon=epsilon,
    )


def make_replay(
    *,
    capacity: int = 1000,
    max_bytes: int = 10**9,
    alpha: float = 0.0,
    is_sequential: bool = False,
    seed: int = 0,
    shard: int = 0,
    incarnation: int = 0,
    stack: int = SPEC.stack,
) -> PrioritizedReplay:
    """Return an empty replay."""
    return PrioritizedReplay(
        storage=SegmentStorage(
            capacity=capacity,
            max_bytes=max_bytes,
            shard=shard,
            incarnation=incarnation,
            stack=stack,
        ),
        capacity=capacity,
        alpha=alpha,
        is_sequential=is_sequential,
        rng=np.random.default_rng(seed),
    )


def held(replay: PrioritizedReplay) -> tuple[int, int, float]:
    """Return what was ever inserted, what is live, and the mass of that."""
    return replay.storage.inserted, len(replay.storage), replay.mass


def make_shard(
    *,
    limiter: RateLimiter = NO_LIMIT,
    shards: int = 1,
    observation: ObservationSpec = SPEC,
    before: tuple[int, int] = (0, 0),
    **replay: Any,
) -> ReplayShard:
    """Return an empty shard; `replay` goes to `make_replay`."""
    return ReplayShard(
        replay=make_replay(stack=observation.stack, **replay),
        limiter=limiter,
        shards=shards,
        observation=observation,
        accepted_before=before[0],
        episodes_before=before[1],
    )


class LatePending:
    """An answer that comes when its shard delivers it."""

    def __init__(self, shard: LateShard) -> None:
        self._shard = shard
        self.answer: list[Any] = []  # the result or the exception, once it is there

    def wait(self, timeout_s: float) -> bool:
        """Look without waiting: whoever drives the test decides what arrives when."""
        self._shard.waits_s.append(timeout_s)
        return bool(self.answer)

    def result(self) -> Any:
        """Return the answer; what lies before it in the queue is delivered first, as in a wait."""
        while not self.answer:
            self._shard.deliver()
        if isinstance(self.answer[0], Exception):
            raise self.answer[0]
        return self.answer[0]


class LateShard:
    """A shard at the end of a slow wire: calls are served in order, one for each `deliver`."""

    def __init__(self, shard: Any) -> None:
        self.shard = shard
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.waits_s: list[float] = []
        self._queue: deque[tuple[LatePending, str, tuple[Any, ...]]] = deque()

    @property
    def under_way(self) -> int:
        """Calls not yet served."""
        return len(self._queue)

    def deliver(self) -> bool:
        """Serve the oldest call; return False if there is none."""
        if not self._queue:
            return False
        pending, method, arguments = self._queue.popleft()
        try:
            pending.answer.append(getattr(self.shard, method)(*arguments))
        except Exception as error:  # handed to whoever asks for the result
            pending.answer.append(error)
        return True

    def deliver_all(self) -> None:
        """Serve everything."""
        while self.deliver():
            pass

    def prepare(self, push: Push) -> Push:
        self.calls.append(("prepare", (push,)))
        return push

    def add(self, prepared: Push) -> LatePending:
        return self._call("add", prepared)

    def sample(self, rows: Sequence[int], learner: LearnerCounts) -> LatePending:
        return self._call("sample", rows, learner)

    def counts(self, learner: LearnerCounts) -> LatePending:
        return self._call("counts", learner)

    def update_priorities(self, update: PriorityUpdate) -> LatePending:
        return self._call("update_priorities", update)

    def count(self, method: str) -> int:
        """How often a method was called."""
        return sum(name == method for name, _ in self.calls)

    def _call(self, method: str, *arguments: Any) -> LatePending:
        self.calls.append((method, arguments))
        pending = LatePending(self)
        self._queue.append((pending, method, arguments))
        return pending


class DeadShard:
    """What a wire leads to after the process at its end has died."""

    def _lose(self, *arguments: Any) -> Any:
        raise ShardLost("the process died")

    add = sample = counts = update_priorities = _lose


def kill(wire: LateShard) -> None:
    """Let the process at the end of a wire die: what is under way is lost, answers given are not.

    Until another is put in its place, `wire.shard`, every call is lost, too.
    """
    wire.shard = DeadShard()
    wire.deliver_all()


class StubbornShard:
    """Answers "not yet" so many times, then accepts everything; samples nothing."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.accepted: list[Push] = []

    def add(self, push: Push) -> bool:
        if self.refusals > 0:
            self.refusals -= 1
            return False
        self.accepted.append(push)
        return True

    def sample(self, rows: Sequence[int], learner: LearnerCounts) -> SampleReply:
        raise AssertionError((rows, learner))

    def counts(self, learner: LearnerCounts) -> ShardCounts:
        raise AssertionError(learner)


# --- runs -----------------------------------------------------------------------------------------


def made(folder: Path) -> Path:
    """Return a folder that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def begin_run(folder: RunFolder, config: Config, game: str, command: list[str]) -> None:
    """Make a folder a run's, as `launch.py` does."""
    folder.open({})
    folder.begin(config, game, command)


NOTHING_BEFORE = Before(agent_steps=0, episodes=0, learner_steps=0, samples=0, returns=())


def new_plan(config: Config, spec: EnvironmentSpec, folder: Path) -> Plan:
    """Return the plan of a run that begins."""
    return Plan(
        config=config,
        spec=spec,
        folder=RunFolder(folder),
        max_bytes=1 << 30,
        resume_from="",
        notes=[],
        before=NOTHING_BEFORE,
        seconds_before=0.0,
        result_before={},
        incarnations={},
    )
