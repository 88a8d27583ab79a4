"""A small run that saves every few seconds, made to be broken, and what one looks for in it."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
from launching import Launched
from unhurried import GAME

from driver.view.events import read_scalars
from driver.view.tags import REPLAY_TRANSITIONS, TRAIN_EPISODE_RETURN

# What issue and README promise of an actor; the others take the time that their imports take.
ACTOR_BACK_S = 30.0
HANG_S = 15.0
# Least time between two rounds in which the driver books reports, frames among them. What was under
# way at a kill is told by the first round after it.
ROUND_S = 1.0
# So long after a checkpoint was written the driver has heard of it, in the learner's next report.
HEARD_OF_S = 3.0
ROLES = {
    "actor": "ActorProcess",
    "evaluator": "EvaluatorProcess",
    "learner": "LearnerProcess",
    "replay": "ReplayProcess",
    "weight_store": "WeightStoreProcess",
}
FLAGS = (
    *("--preset", "cartpole", "--total-frames", "100_000_000", "--actors", "2", "--env", GAME),
    *("--replay.shards", "2", "--checkpoint.every-minutes", "0.05", "--health.hang-s", str(HANG_S)),
    *("--evaluator.every-minutes", "0.05", "--evaluator.episodes", "1"),
    # So short that some end in every second: each game's row tells how many frames there are.
    *("--env.max-game-frames", "100"),
)


class Job(NamedTuple):
    """A run that goes on until somebody ends it.

    Fields:
      launched: its processes.
      run: its folder.
    """

    launched: Launched
    run: Path

    def victims(self, role: str) -> list[psutil.Process]:
        """Return a role's live processes."""
        return self.launched.workers(ROLES[role])

    def said(self, pattern: str) -> int:
        """Return how often the driver said a line like this."""
        return len(re.findall(pattern, self.launched.said))

    def wait_until_more(self, count: Callable[[], float], what: str, timeout_s: float) -> None:
        """Wait until a count has grown."""
        before = count()
        self.launched.wait_until(lambda: count() > before, what, timeout_s)

    def comebacks(self, role: str) -> int:
        """Return how often the driver said that a process of a role is back."""
        return self.said(rf"{role} \d+ is back after")

    def wait_for_comeback(self, role: str, before: int, timeout_s: float, number: int = 1) -> None:
        """Wait until the driver has said so `number` times more than before."""
        self.wait_until(
            lambda: self.comebacks(role) >= before + number, f"comeback of {role}", timeout_s
        )

    def wait_until(self, holds: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait until something holds."""
        self.launched.wait_until(holds, what, timeout_s)

    def last(self, tag: str) -> float:
        """Return a scalar's newest value, 0 before the first."""
        scalars = read_scalars(self.run)
        return float(scalars[tag].values[-1]) if tag in scalars else 0.0

    def frames(self) -> float:
        """Return how many frames the newest scalars speak of."""
        return last_frame(self.run, REPLAY_TRANSITIONS)

    def frames_by(self, wall_s: float) -> float:
        """Return how many frames the driver knew of at a time, as games and scalars tell it.

        Args:
          wall_s: seconds since the epoch, as `time.time()` gives them.
        """
        frames = 0.0
        scalars = read_scalars(self.run)
        for tag in (REPLAY_TRANSITIONS, TRAIN_EPISODE_RETURN):
            told = scalars[tag].frames[scalars[tag].wall_s <= wall_s]
            frames = max(frames, told.max(initial=0.0))
        return frames

    def wait_for_scalars_after(self, wall_s: float) -> None:
        """Wait until the scalars of a later time are in the file, and with them all before."""
        self.wait_until(
            lambda: read_scalars(self.run)[REPLAY_TRANSITIONS].wall_s[-1] > wall_s, "scalars", 60.0
        )

    def expect_progress(self, timeout_s: float = 60.0) -> None:
        """See acting and learning go on."""
        self.wait_until_more(self.frames, "more frames", timeout_s)
        self.wait_until_more(lambda: last_frame(self.run, "learner/td_loss"), "learning", timeout_s)


def last_frame(run: Path, tag: str) -> float:
    """Return the frames of a scalar's newest value, 0 before the first."""
    time.sleep(0.5)  # reading the events costs more than the run needs between two of them
    scalars = read_scalars(run)
    return float(scalars[tag].frames[-1]) if tag in scalars else 0.0


def snapshots(run: Path) -> int:
    """Return how many shards have a snapshot."""
    return len({path.parent for path in run.glob("checkpoints/replay_*/*.manifest")})


def checkpoint_names(run: Path) -> set[str]:
    """Return the names of the checkpoints."""
    return {path.name for path in run.glob("checkpoints/checkpoint_*.pt")}


def checkpoint_steps(run: Path, *, since_s: float = 0.0, until_s: float = math.inf) -> list[int]:
    """Return the learner steps of the checkpoints that were written in a time, in order.

    Args:
      run: its folder.
      since_s: seconds since the epoch, as files have them.
      until_s: the same.
    """
    steps = []
    for path in run.glob("checkpoints/checkpoint_*.pt"):
        with contextlib.suppress(FileNotFoundError):  # the run deletes old ones
            if since_s < path.stat().st_mtime <= until_s:
                steps.append(int(path.stem.removeprefix("checkpoint_")))
    return sorted(steps)


def checkpoints(run: Path) -> int:
    """Return how many checkpoints there are."""
    return len(checkpoint_names(run))
