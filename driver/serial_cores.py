"""The cores of a run in one process, wired."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from actors.actor_loop import ActorLoop
from actors.assembly import make_actor_loop
from actors.evaluator import play
from common.reports import EvaluationResult
from common.seeding import derive_seed
from common.types import Batch, Weights
from driver.best_weights import BestWeights
from driver.interrupts import Interrupts
from driver.plan import Plan
from driver.serial_replay import SerialReplay
from learner.assembly import make_learner, make_learner_loop, resolve_device
from learner.checkpoint import CheckpointFolder, load
from learner.learner_loop import LearnerLoop
from learner.payload import checkpoint_payload, expect_resumable
from learner.prefetch import SynchronousFetcher
from replay.assembly import make_sampler
from replay.priority_updater import PriorityUpdater
from replay.writer import ReplayWriter

# Shards in this very process always answer, also where it stood still for a while.
_LOCAL_ANSWER_S = math.inf
# With more than one the last digits follow their number, and so a number that follows the machine
# would make another run of the same command.
_SERIAL_THREADS = 1


class Cores(NamedTuple):
    """What a run in one process is made of.

    Fields:
      players: the actors.
      writers: one for each.
      replay: its shards, and what they took in.
      learner: its loop; it publishes to the players.
      save: writes everything that a resumed run needs; returns why it could not, "" if it could.
      evaluate: plays with the weights published last; None when told to stop.
    """

    players: Sequence[ActorLoop]
    writers: Sequence[ReplayWriter]
    replay: SerialReplay
    learner: LearnerLoop
    save: Callable[[], str]
    evaluate: Callable[[], EvaluationResult | None]


def make_serial_cores(plan: Plan, note: Callable[[str], None], interrupts: Interrupts) -> Cores:
    """Build everything in this process; see driver.serial_run."""
    config, spec = plan.config, plan.spec
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS, to be deterministic
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(config.learner.threads or _SERIAL_THREADS)
    incarnation = max(plan.incarnations.values(), default=0)
    everyone = [("learner", 0), *(("replay", k) for k in range(config.replay.shards))]
    everyone += [("actor", actor) for actor in range(config.actor.count)]
    try:
        plan.folder.write_incarnations({f"{role}/{i}": incarnation + 1 for role, i in everyone})
    except OSError as error:
        note(f"incarnations.json could not be written: {error}")
    replay = SerialReplay(plan, incarnation)
    for line in replay.notes:
        note(line)
    actors = [
        make_actor_loop(config, spec, actor=actor, incarnation=incarnation)
        for actor in range(config.actor.count)
    ]
    device = resolve_device(config.learner.device)
    learner = make_learner(config, spec, device=device, serial=True)
    if learner.is_compiled:
        learner.warm_up()
    sampler = make_sampler(config, spec, shards=replay.handles, in_flight=1, rows_per_request=1)
    path = Path(plan.resume_from)
    published: list[Weights] = []

    def fetch() -> Batch | None:
        sampler.version = loop.version
        return sampler.fetch()

    def send_weights(weights: Weights) -> None:
        published[:] = [weights]
        for actor in actors:
            actor.take(weights)

    loop = make_learner_loop(
        config,
        learner=learner,
        sampler=sampler,
        saved=expect_resumable(path, load(path)) if plan.resume_from else None,
        catch_up_s=_LOCAL_ANSWER_S,
        make_fetcher=lambda: SynchronousFetcher(fetch=fetch, device=device),
        send_priorities=PriorityUpdater(shards=replay.handles, window=1, rows_per_call=1).update,
        send_weights=send_weights,
        counts=replay,
        agent_steps_before=plan.before.agent_steps,
        episodes_before=plan.before.episodes,
        incarnation=incarnation,
        # A second of `LearnerLoop` is a learner step or an agent step here.
        clock=lambda: float(learner.learner_step + plan.before.agent_steps + replay.accepted),
    )
    folder = CheckpointFolder(plan.folder.place("checkpoints"), config.checkpoint.keep)
    best = BestWeights(plan, note)

    def save_all() -> str:
        payload = checkpoint_payload(config, spec, learner, loop, sampler.rng_state)
        try:
            folder.save(payload, learner.learner_step)
        except OSError as error:
            return f"the checkpoint could not be written: {error}"
        try:
            replay.save()
        except OSError as error:
            return f"replay could not be written: {error}"
        note(f"saved learner step {learner.learner_step}")
        return ""

    def evaluate_published() -> EvaluationResult | None:
        seed = derive_seed(config.seed, "evaluator", incarnation)
        result = play(config, spec, published[0], seed, interrupts.requested.is_set)
        if result is not None:
            best.offer(result, published[0])
        return result

    return Cores(actors, replay.make_writers(), replay, loop, save_all, evaluate_published)
