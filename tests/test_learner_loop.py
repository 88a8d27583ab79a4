from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeClock, make_replay, make_segment
from numpy.typing import NDArray
from shard_contract import ENVIRONMENT
from torch import Tensor, nn

from common.config import AgentConfig, LearnerConfig
from common.networks import flatten_state
from common.packing import pack_segment
from common.reports import NEVER_SAVED, LearnerReport
from common.types import Batch, PriorityUpdate, Weights, WeightsVersion
from learner.device_batch import DeviceBatch
from learner.learner import Learner, StepResult
from learner.learner_loop import LearnerLoop
from learner.prefetch import SynchronousFetcher
from replay.decoding import Decoder

B = 4


class FakeLearner:
    """Adds 1 to every weight; step n says loss n, Q 10 n, gradient 100 n, priorities n, n + .1."""

    def __init__(self, events: list[str]) -> None:
        self.network: nn.Module = nn.Linear(2, 2)
        self.device = torch.device("cpu")
        self.learner_step = 0
        self.episodes = 0
        self.poison: float | None = None
        self.poison_priority: float | None = None
        self._events = events

    def step(self, batch: DeviceBatch) -> StepResult:
        self.learner_step += 1
        self._events.append(f"step {self.learner_step}")
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.add_(1.0)
        n = float(self.learner_step)
        priority = n + torch.arange(len(batch.weight)) / 10
        if self.poison_priority is not None:
            priority[2] = self.poison_priority
        loss = n if self.poison is None else self.poison
        numbers = {"td_loss": loss, "q_mean": 10 * n, "grad_norm": 100 * n}
        return StepResult(priority, {name: torch.tensor(x) for name, x in numbers.items()})

    def count_episodes(self, episodes: int) -> None:
        self.episodes = episodes


class FakeFetcher:
    """Gives out batches of ids 10 n, 10 n + 1, ... as many as there are."""

    def __init__(self, batches: int) -> None:
        self.ready = deque(range(1, batches + 1))
        self.timeouts_s: list[float] = []

    def get(self, timeout_s: float) -> tuple[NDArray[np.int64], DeviceBatch] | None:
        self.timeouts_s.append(timeout_s)
        if not self.ready:
            return None
        ids = 10 * self.ready.popleft() + np.arange(B)
        return ids, DeviceBatch(*(torch.zeros(B) for _ in DeviceBatch._fields))


class Bench:
    """A loop between fakes, and what came out of it."""

    def __init__(
        self, *, batches: int = 100, period: int = 3, samples: int = 0, incarnation: int = 0
    ) -> None:
        self.events: list[str] = []
        self.updates: list[PriorityUpdate] = []
        self.weights: list[Weights] = []
        self.clock = FakeClock()
        self.agent_steps = 0
        self.episodes = 0
        self.learner = FakeLearner(self.events)
        self.fetcher = FakeFetcher(batches)
        self.loop = LearnerLoop(
            learner=self.learner,  # type: ignore[arg-type]
            fetcher=self.fetcher,
            send_priorities=self._take_priorities,
            send_weights=self.weights.append,
            agent_steps=lambda: self.agent_steps,
            episodes=lambda: self.episodes,
            incarnation=incarnation,
            publish_period_learner_steps=period,
            samples=samples,
            clock=self.clock,
        )

    def report(self) -> LearnerReport:
        return self.loop.report(dropped_priority_updates=7, save=NEVER_SAVED)

    def run(self, steps: int, seconds_each: float = 0.0) -> None:
        for _ in range(steps):
            self.clock.now_s += seconds_each
            assert self.loop.run_step(0.5)
            self.loop.publish_if_due()

    def _take_priorities(self, update: PriorityUpdate) -> None:
        self.events.append(f"priorities of {update.ids[0] // 10}")
        self.updates.append(update)


# --- steps and priorities -------------------------------------------------------------------------


def test_no_batch_in_time_is_no_step() -> None:
    bench = Bench(batches=1)
    assert bench.loop.run_step(0.25)
    assert not bench.loop.run_step(0.75)
    assert bench.fetcher.timeouts_s == [0.25, 0.75]
    assert bench.learner.learner_step == 1
    assert bench.loop.samples == B


def test_priorities_leave_once_the_next_step_is_launched() -> None:
    bench = Bench()
    bench.run(3)
    assert bench.events == ["step 1", "step 2", "priorities of 1", "step 3", "priorities of 2"]
    bench.loop.flush_priorities()
    bench.loop.flush_priorities()
    assert bench.events[5:] == ["priorities of 3"]


def test_priorities_are_those_of_their_own_ids() -> None:
    bench = Bench()
    bench.run(3)
    bench.loop.flush_priorities()
    for step, update in enumerate(bench.updates, 1):
        assert update.ids.tolist() == [10 * step + i for i in range(B)]
        assert update.priority == pytest.approx([step + i / 10 for i in range(B)])
        assert update.priority.dtype == np.float32


def test_samples_go_on_from_where_the_run_stood() -> None:
    bench = Bench(samples=1000)
    bench.run(3)
    assert bench.loop.samples == bench.report().samples == 1000 + 3 * B


def test_learner_hears_with_each_step_how_many_games_ended() -> None:
    bench = Bench()
    bench.run(1)
    assert bench.learner.episodes == 0
    bench.episodes = 7
    bench.run(1)
    assert bench.learner.episodes == bench.loop.episodes == 7


# --- publishing -----------------------------------------------------------------------------------


def test_weights_leave_with_their_version_and_the_runs_agent_steps() -> None:
    bench = Bench(incarnation=2)
    bench.agent_steps = 77
    bench.run(2)
    bench.loop.publish()
    *_, weights = bench.weights
    assert weights.version == WeightsVersion(2, 2)
    assert weights.agent_steps == bench.loop.agent_steps == 77
    np.testing.assert_array_equal(weights.buffer, flatten_state(bench.learner.network))


def test_published_weights_do_not_change_with_the_next_step() -> None:
    bench = Bench()
    bench.loop.publish()
    before = bench.weights[0].buffer.copy()
    bench.run(1)
    np.testing.assert_array_equal(bench.weights[0].buffer, before)
    assert not np.array_equal(flatten_state(bench.learner.network), before)


def test_weights_are_published_every_period() -> None:
    bench = Bench(period=3)
    bench.loop.publish()
    bench.run(9, seconds_each=1.0)
    assert [weights.version.learner_step for weights in bench.weights] == [0, 3, 6, 9]


def test_weights_are_published_at_most_once_a_second() -> None:
    bench = Bench(period=2)
    bench.loop.publish()
    bench.run(20, seconds_each=0.125)  # a second is 8 steps
    assert [weights.version.learner_step for weights in bench.weights] == [0, 8, 16]


def test_while_replay_fills_agent_steps_go_out_once_a_second() -> None:
    """With the weights, which stay as they are: exploration by agent steps would stand still."""
    bench = Bench(batches=0)
    bench.loop.publish()
    for _ in range(8):
        bench.clock.now_s += 0.25
        bench.agent_steps += 10
        assert not bench.loop.run_step(0.5)
    assert [weights.agent_steps for weights in bench.weights] == [0, 40, 80]
    assert {weights.version for weights in bench.weights} == {WeightsVersion(0, 0)}


def test_nothing_goes_out_while_nothing_is_learned_or_played() -> None:
    bench = Bench(batches=0)
    bench.loop.publish()
    bench.clock.now_s += 5.0
    assert not bench.loop.run_step(0.5)
    assert len(bench.weights) == 1


def test_weights_that_are_not_due_do_not_go_out_for_want_of_a_batch() -> None:
    bench = Bench(batches=2, period=3)
    bench.loop.publish()
    bench.run(2, seconds_each=1.0)
    bench.agent_steps += 10
    bench.clock.now_s += 5.0
    assert not bench.loop.run_step(0.5)
    assert len(bench.weights) == 1


def test_weights_go_out_again_as_they_were_sent_with_the_steps_of_now() -> None:
    """While the learner compiles, its weights are anything: what was sent before is sent again."""
    bench = Bench(batches=0)
    bench.loop.republish()  # nothing was sent
    bench.loop.publish()
    bench.loop.republish()  # and nothing was played
    with torch.no_grad():
        next(bench.learner.network.parameters()).zero_()
    bench.agent_steps = 40
    bench.loop.republish()
    first, second = bench.weights
    assert (first.agent_steps, second.agent_steps) == (0, 40)
    assert second.buffer is first.buffer
    assert second.version == first.version


def test_steps_alone_publish_nothing() -> None:
    bench = Bench(period=1)
    bench.loop.publish()
    for _ in range(5):
        bench.clock.now_s += 1.0
        bench.loop.run_step(0.5)
    bench.loop.publish_if_due()
    bench.loop.publish_if_due()
    assert [weights.version.learner_step for weights in bench.weights] == [0, 5]


def test_first_step_publishes_if_nobody_did() -> None:
    bench = Bench(period=1)
    bench.run(1)
    assert [weights.version.learner_step for weights in bench.weights] == [1]


def test_version_of_a_restarted_learner_is_newer_although_its_step_is_not() -> None:
    old, new = Bench(incarnation=0), Bench(incarnation=1)
    old.run(9)
    assert new.loop.version > old.loop.version
    assert new.loop.version == (1, 0)


# --- the report -----------------------------------------------------------------------------------


def test_report_has_the_means_of_the_steps_since_the_last() -> None:
    bench = Bench(incarnation=1)
    bench.agent_steps = 33
    bench.run(3)
    report = bench.report()
    assert report.metrics == pytest.approx({"td_loss": 2, "q_mean": 20, "grad_norm": 200})
    assert list(report.metrics) == ["td_loss", "q_mean", "grad_norm"]
    assert report.version == WeightsVersion(1, 3)
    assert (report.learner_step, report.samples, report.agent_steps) == (3, 3 * B, 33)
    assert (report.dropped_priority_updates, report.save) == (7, NEVER_SAVED)
    bench.run(2)
    assert bench.report().metrics["td_loss"] == pytest.approx((4 + 5) / 2)


def test_report_without_steps_says_nothing_of_them() -> None:
    report = Bench().report()
    assert report.metrics == {}
    assert report.learner_step == 0


def test_phases_name_where_the_time_went_and_start_again() -> None:
    bench = Bench(period=1)
    bench.run(2)
    names = {name for name, _ in bench.report().phases.phases}
    assert names == {"wait", "step", "priorities", "publish"}
    assert bench.report().phases.phases == ()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_learning_that_blew_up_is_an_error(poison: float) -> None:
    bench = Bench()
    bench.run(2)
    bench.learner.poison = poison
    bench.run(1)
    match = rf"Expect finite numbers from the learner, actually at learner step 3: td_loss {poison}"
    with pytest.raises(FloatingPointError, match=match):
        bench.report()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_priority_that_is_not_finite_never_leaves(poison: float) -> None:
    bench = Bench()
    bench.run(2)
    bench.learner.poison_priority = poison
    bench.run(1)  # takes the step and sends the priorities of the one before
    bench.learner.poison_priority = None
    match = rf"Expect finite priorities from the learner, actually at learner step 3: {poison}"
    with pytest.raises(FloatingPointError, match=match):
        bench.loop.run_step(0.5)
    assert [update.ids[0] // 10 for update in bench.updates] == [1, 2]
    bench.learner.poison_priority = poison
    bench.run(1)
    with pytest.raises(FloatingPointError, match="actually at learner step 5"):
        bench.loop.flush_priorities()
    assert len(bench.updates) == 2


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weights_that_are_not_finite_never_leave(poison: float, name: str) -> None:
    bench = Bench(period=1)
    bench.loop.publish()
    with torch.no_grad():
        bench.learner.network.get_parameter(name).view(-1)[1] = poison
    match = (
        f"Expect finite numbers from the learner, actually at learner step {{}}: {poison} in "
        f"`{name}`"
    )
    with pytest.raises(FloatingPointError, match=match.format(0)):
        bench.loop.publish()
    with pytest.raises(FloatingPointError, match=match.format(1)):
        bench.run(1, seconds_each=1.0)
    assert len(bench.weights) == 1


def test_integers_and_large_numbers_among_the_weights_are_finite() -> None:
    bench = Bench()
    bench.learner.network = nn.BatchNorm1d(2)
    with torch.no_grad():
        bench.learner.network.weight[0] = 3.4e38
        bench.learner.network.weight[1] = 3.4e38
    bench.loop.publish()
    assert bench.learner.network.running_var is not None
    bench.learner.network.running_var[1] = math.nan  # a buffer acts, too
    with pytest.raises(FloatingPointError, match="nan in `running_var`"):
        bench.loop.publish()


# --- with the real parts --------------------------------------------------------------------------


def first_td_errors(learner: Learner, replay_rows: int, fetch: Any) -> dict[int, float]:
    """Return |TD error| by id under the initial weights, where target and online network agree."""
    errors: dict[int, float] = {}
    while len(errors) < replay_rows:
        batch = fetch()
        with torch.no_grad():
            q_tm1 = learner.network(torch.from_numpy(batch.s_tm1))
            q_t: Tensor = learner.network(torch.from_numpy(batch.s_t)).max(dim=1).values
        for i, number in enumerate(batch.ids.tolist()):
            target = batch.r_t[i] + batch.discount_t[i] * float(q_t[i])
            errors[number] = abs(float(target) - float(q_tm1[i, batch.a_tm1[i]]))
    return errors


def test_loop_turns_the_real_learner_and_replay() -> None:
    """Rows come back with their |TD error|, unweighted, and nothing keeps a graph."""
    replay = make_replay(alpha=1.0)
    replay.add(pack_segment(make_segment(transitions=8)))
    decoder = Decoder(spec=ENVIRONMENT.observation, threads=1)
    fetched: list[Batch] = []

    def fetch() -> Batch:
        reply = replay.sample(8)
        s_tm1, s_t = decoder.decode(reply)
        columns: dict[str, Any] = {"r_t": reply.r_t, "discount_t": reply.discount_t}
        weight = np.linspace(0.1, 1.0, 8, dtype=np.float32)
        a_tm1 = reply.a_tm1.astype(np.int64)
        fetched.append(Batch(reply.ids, weight, s_tm1, a_tm1, s_t=s_t, **columns))
        return fetched[-1]

    learner = Learner(
        agent=AgentConfig(network="mlp", hidden=(16,)),
        config=LearnerConfig(batch_size=8, optimizer="adam", learning_rate=1e-2),
        spec=ENVIRONMENT,
        device=torch.device("cpu"),
        seed=0,
        compile_step=False,
    )
    updates: list[PriorityUpdate] = []
    loop = LearnerLoop(
        learner=learner,
        fetcher=SynchronousFetcher(fetch=fetch, device=learner.device),
        send_priorities=updates.append,
        send_weights=lambda _: None,
        agent_steps=lambda: replay.storage.inserted,
        episodes=lambda: 0,
        incarnation=0,
        publish_period_learner_steps=10,
        samples=0,
        clock=FakeClock(),
    )
    td = first_td_errors(learner, replay_rows=8, fetch=fetch)
    fetched.clear()
    for _ in range(3):
        assert loop.run_step(0.0)
    loop.flush_priorities()
    assert [update.ids.tolist() for update in updates] == [b.ids.tolist() for b in fetched]
    expected = [td[number] for number in updates[0].ids.tolist()]
    assert updates[0].priority == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert loop.samples == 3 * 8
    assert not loop._sums.requires_grad
    report = loop.report(dropped_priority_updates=0, save=NEVER_SAVED)
    assert list(report.metrics) == ["td_loss", "q_mean", "grad_norm"]
    assert all(map(math.isfinite, report.metrics.values()))
