"""One run in one process: the rate limiter says who moves, steps say what time it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from common.endings import EnvironmentFailed, RunEnded
from common.reports import NEVER_SAVED
from driver.goal import ReturnGoal
from driver.interrupts import Interrupts
from driver.plan import Plan
from driver.serial_cores import Cores
from driver.view.reporter import Reporter

_REPORT_MINUTES = 1.0 / 60.0
STEPS_PER_MINUTE = 6_000
"""Agent steps and learner steps, together, that count as a minute in `every_minutes`."""


class SerialRun:
    """Turns the same cores as the processes do, bit-reproducible for a seed.

    Actors move while replay takes their pushes, the learner while it gets samples. Evaluations and
    checkpoints go by a clock of steps, so that the same files come of any speed; reports go by the
    clock on the wall, and change nothing. An evaluation may end it, by `--stop-at-return`.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        cores: Cores,
        reporter: Reporter,
        note: Callable[[str], None],
        interrupts: Interrupts,
    ) -> None:
        """Prepare.

        Args:
          plan: what to run.
          cores: what to run it with.
          reporter: gets the reports.
          note: gets events.
          interrupts: asked whether to stop.
        """
        config = plan.config
        self._plan = plan
        self._cores = cores
        self._reporter = reporter
        self._note = note
        self._interrupts = interrupts
        self._goal = ReturnGoal(
            at_least=config.stop_at_return,
            of=config.stop_at_return_of,
            before=plan.before.returns,
        )
        # With a ratio the limiter ends the learner's turn; without one, a turn is one step.
        self._most_steps = 1 if config.samples_per_insert is None else sys.maxsize
        self._learner_steps = 0
        self._report_due = _every(_REPORT_MINUTES, lambda: time.monotonic() / 60.0)

    def run(self) -> str:
        """Run until the end; keep what was learned before an environment fails.

        Returns:
          Why it ended: "done", what reached `--stop-at-return`, or "interrupted".

        Raises:
          RunEnded: it is done and could not be saved.
          EnvironmentFailed: an environment raised, or answered what it may not.
        """
        try:
            return self._run()
        except EnvironmentFailed:
            self._report()
            has_learned = self._reporter.progress.learner_steps > self._plan.before.learner_steps
            if has_learned and (trouble := self._cores.save()):
                self._note(trouble)
            raise

    def _run(self) -> str:
        config, cores = self._plan.config, self._cores
        cores.learner.publish()
        save_due = _every(config.checkpoint.every_minutes, self._minutes)
        evaluation_due = _every(config.evaluator.every_minutes, self._minutes)
        reason = ""
        while not reason and not self._interrupts.requested.is_set():
            # Whoever has no turn waits, so that phases tell of either here what they do elsewhere.
            with cores.learner.waiting():
                self._play()
            with cores.players[0].waiting():  # one for all: they take turns, too
                self._learn()
            self._report_if_due()
            if evaluation_due():
                self._evaluate()
            if save_due():
                self._report()  # by their frames, a resumed run knows the games from before
                if trouble := cores.save():
                    self._note(f"{trouble}; training goes on")
            reason = self._goal.reached or ("done" if self._is_done() else "")
        if self._goal.reached:
            self._note(self._goal.reached)
        cores.learner.flush_priorities()
        if trouble := cores.save():
            if reason:
                self._report()
                raise RunEnded(trouble)
            self._note(trouble)
        cores.learner.publish()
        self._report()
        self._evaluate()
        return reason or "interrupted"

    def _play(self) -> None:
        for player, writer in zip(self._cores.players, self._cores.writers, strict=True):
            if writer.has_room() and (segments := player.collect(1)):
                games = player.drain_episodes()
                self._goal.trained(game.episode_return for game in games)
                writer.push(segments, games, player.drain_phases(), player.epsilon)

    def _learn(self) -> None:
        learner = self._cores.learner
        for _ in range(self._most_steps):
            if self._interrupts.requested.is_set() or not learner.run_step(0.0):
                break
            self._learner_steps += 1
            self._report_if_due()  # a turn of large batches takes minutes
        learner.publish_if_due()  # once a turn: nobody acted in between

    def _minutes(self) -> float:
        """Return the time since the start, as steps tell it."""
        return (self._cores.replay.accepted + self._learner_steps) / STEPS_PER_MINUTE

    def _is_done(self) -> bool:
        replay, plan = self._cores.replay, self._plan
        return replay.accepted >= plan.agent_steps_left or replay.episodes >= plan.episodes_left

    def _report_if_due(self) -> None:
        if self._report_due():
            self._report()

    def _report(self) -> None:
        if moved := self._plan.folder.move_noticed():
            self._note(moved)
        reports = {k: shard.report() for k, shard in enumerate(self._cores.replay.shards)}
        # No save runs beside the work here, and no priority is dropped.
        learner = self._cores.learner.report(dropped_priority_updates=0, save=NEVER_SAVED)
        self._reporter.update(reports, learner, {}, self._plan.config.actor.count)

    def _evaluate(self) -> None:
        if self._plan.config.evaluator.enabled:
            result = self._cores.evaluate()
            if result is not None:
                self._reporter.evaluated(result)
                self._goal.evaluated(result.returns)


def _every(minutes: float, clock: Callable[[], float]) -> Callable[[], bool]:
    """Return what tells whether so many minutes have passed since it last said so."""
    next_time = clock() + minutes

    def due() -> bool:
        nonlocal next_time
        now = clock()
        if now < next_time:
            return False
        next_time = now + minutes
        return True

    return due
