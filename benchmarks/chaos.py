"""A run whose processes are killed at random: what it survives, what it loses, how fast it is back.

    python -m benchmarks.chaos --minutes 30 --seed 1 --run-dir runs/chaos -- --preset pong-fast

Needs the `dev` extra. The kills come from a seeded generator: which role, which of its processes,
when. Prints a table and writes `chaos.json` into the run's folder. Exits 1 if something did not
come back, if replay's sums do not agree, if it lost more than shards took in between their
snapshots and their deaths, if memory grew, or if the run itself failed.

Memory grew if its median in the last sixth of the run is more than 15 % above that of the second
sixth: in the first, replay fills and the processes warm up. A run of less than a minute has too few
samples to tell, which counts as growth.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil

from common.config import Config
from common.config_file import load_file
from driver.view.events import Series, read_scalars
from driver.view.tags import (
    REPLAY_EVICTED_TRANSITIONS,
    REPLAY_LOST_TRANSITIONS,
    REPLAY_TRANSITIONS,
)

_ROOT = Path(__file__).resolve().parent.parent
# How often each role is the victim, and the title of its processes.
_ROLES = {
    "actor": (0.5, "ray::ActorProcess"),
    "evaluator": (0.1, "ray::EvaluatorProcess"),
    "replay": (0.15, "ray::ReplayProcess"),
    "weight_store": (0.1, "ray::WeightStoreProcess"),
    "learner": (0.15, "ray::LearnerProcess"),
}
_MEAN_GAP_S = 60.0
# Share of the kills that take a second process with them.
_AT_ONCE = 0.2
_BACK_S = 180.0
_STOP_S = 60.0
_MEMORY_S = 10.0
# Most that memory may rise from the second sixth of the run to the last, as a share.
_GROWTH = 0.15
# Of snapshots and reports, on top of the time between two snapshots.
_LATE_S = 30.0


class Kill(NamedTuple):
    """One fault.

    Fields:
      at_s: seconds after the start.
      role: the victim's.
      alone: nobody else was killed at that moment.
      back_s: seconds until the driver said that it is back; None: never.
    """

    at_s: float
    role: str
    alone: bool
    back_s: float | None


class Memory(NamedTuple):
    """What the run's processes hold.

    Fields:
      at_s: seconds after the start.
      bytes: of their own or shared (PSS).
    """

    at_s: float
    bytes: int


class Job:
    """A launch.py in a session of its own, and what its driver said."""

    def __init__(self, flags: Sequence[str], run: Path) -> None:
        run.parent.mkdir(parents=True, exist_ok=True)
        self._said = run.with_name(run.name + ".out")
        with self._said.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, str(_ROOT / "launch.py"), "--run-dir", str(run), *flags],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        """Whether the driver runs."""
        return self._process.poll() is None

    def times_said(self, pattern: str) -> int:
        """Return how many lines match."""
        return len(re.findall(pattern, self._said.read_text(errors="replace")))

    def processes(self) -> list[psutil.Process]:
        """Return the live processes of the session."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = os.getsid(process.pid) == self._process.pid
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def workers(self, title: str) -> list[psutil.Process]:
        """Return the live Ray workers of a title."""
        found = []
        for process in self.processes():
            try:
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def memory_bytes(self) -> int:
        """Return the bytes that the session's processes have for themselves or share (PSS)."""
        total = 0
        for process in self.processes():
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        return total

    def end(self) -> int:
        """End it as Ctrl-C does; return its exit code."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(timeout=_STOP_S)


def main(arguments: Sequence[str]) -> int:
    """Run the job, break it, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("flags", nargs="*", help="of launch.py")
    options = parser.parse_args(arguments)
    job = Job(options.flags, options.run_dir)
    started_s = time.monotonic()
    try:
        if not wait_until(lambda: job.times_said("every actor has pushed") > 0, job, 600.0):
            print("the run did not come up")
            return 1
        rng = np.random.default_rng(options.seed)
        kills, memory = torment(job, rng, started_s, options.minutes)
    finally:
        code = job.end()
    scalars = read_scalars(options.run_dir)
    result = json.loads((options.run_dir / "result.json").read_text())
    sums = replay_sums(scalars, result)
    every_s = 60.0 * load_file(Config(), options.run_dir / "config.yaml").checkpoint.every_minutes
    losses = explain_losses(scalars, result, kills, every_s)
    report = {
        "minutes": options.minutes,
        "seed": options.seed,
        "flags": options.flags,
        "exit_code": code,
        "kills": [kill._asdict() for kill in kills],
        "memory": [sample._asdict() for sample in memory],
        "replay": sums,
        "losses": losses,
        "result": result,
    }
    (options.run_dir / "chaos.json").write_text(json.dumps(report, indent=2) + "\n")
    growth = memory_growth(memory)
    print(table(kills, losses))
    print(f"replay: {sums}")
    for loss in losses:
        print(f"lost at {loss['at_s']:.0f} s: {loss['lost']:,} of at most {loss['at_most']:,}")
    medians = ", ".join(f"{median_bytes / 1e9:.2f}" for median_bytes in sixths(memory))
    print(f"memory, medians of the run's sixths: {medians} GB, {growth:+.1%} from second to last")
    print(f"result: {result}")
    survived = all(kill.back_s is not None for kill in kills)
    explained = all(loss["lost"] <= loss["at_most"] for loss in losses)
    is_flat = growth <= _GROWTH  # NaN is not
    return 0 if survived and explained and is_flat and sums["agree"] and code == 130 else 1


def torment(
    job: Job, rng: np.random.Generator, started_s: float, minutes: float
) -> tuple[list[Kill], list[Memory]]:
    """Kill at random until the time is over; return the kills, and the memory over time."""
    kills: list[Kill] = []
    memory: list[Memory] = []
    end_s = started_s + minutes * 60.0
    weights = np.array([weight for weight, _ in _ROLES.values()])
    while job.is_running and time.monotonic() < end_s:
        next_s = time.monotonic() + float(rng.exponential(_MEAN_GAP_S))
        role = str(rng.choice(list(_ROLES), p=weights / weights.sum()))
        choice = float(rng.random())
        while job.is_running and time.monotonic() < min(next_s, end_s):
            time.sleep(min(_MEMORY_S, max(0.1, next_s - time.monotonic())))
            memory.append(Memory(time.monotonic() - started_s, job.memory_bytes()))
        roles = [role]
        if rng.random() < _AT_ONCE:  # another one with it, of any role
            roles.append(str(rng.choice(list(_ROLES))))
        if job.is_running and time.monotonic() < end_s:
            kills += kill_at_once(job, roles, choice, started_s)
    return kills, memory


def kill_at_once(job: Job, roles: list[str], choice: float, started_s: float) -> list[Kill]:
    """Kill one process of each role, all at once, and wait until the driver has them back.

    All are waited for together, so that each has its own time.

    Args:
      job: their run.
      roles: no role twice has two different victims.
      choice: in [0, 1), picks among a role's processes.
      started_s: of the run.
    """
    victims: dict[str, psutil.Process] = {}
    for role in roles:
        if found := job.workers(_ROLES[role][1]):
            victims[role] = found[int(choice * len(found))]
    said = {role: job.times_said(_back(role)) for role in victims}
    killed_s = time.monotonic()
    for process in victims.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    back_s: dict[str, float] = {}

    def all_are_back() -> bool:
        for role in victims.keys() - back_s.keys():
            if job.times_said(_back(role)) > said[role]:
                back_s[role] = time.monotonic() - killed_s
        return len(back_s) == len(victims)

    wait_until(all_are_back, job, _BACK_S)
    at_s, alone = killed_s - started_s, len(victims) == 1
    kills = [Kill(at_s, role, alone, back_s.get(role)) for role in victims]
    for kill in kills:
        print(f"{kill.at_s:7.0f} s: {kill.role}, back after {kill.back_s} s", flush=True)
    return kills


def _back(role: str) -> str:
    """Return the pattern of what the driver says when a worker of the role is back."""
    return rf"{role} \d+ is back after"


def wait_until(holds: Any, job: Job, timeout_s: float) -> bool:
    """Wait until something holds; return False if it does not in time, or the job ends."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        if not job.is_running or time.monotonic() > deadline_s:
            return False
        time.sleep(0.2)
    return True


def replay_sums(scalars: Mapping[str, Series], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether what came in is what replay holds, evicted and lost, by the last scalars."""
    sums = {
        name: int(scalars[tag].values[-1])
        for name, tag in (
            ("held", REPLAY_TRANSITIONS),
            ("evicted", REPLAY_EVICTED_TRANSITIONS),
            ("lost", REPLAY_LOST_TRANSITIONS),
        )
    }
    accepted = result["agent_steps"]
    # TensorBoard keeps float32: whole numbers up to 2^24 are exact, beyond that to 1 in 2^24.
    slack = sum(sums.values()) * 2.0**-23 if sum(sums.values()) > 1 << 24 else 0.0
    return {"accepted": accepted, **sums, "agree": abs(accepted - sum(sums.values())) <= slack}


def explain_losses(
    scalars: Mapping[str, Series],
    result: Mapping[str, Any],
    kills: Sequence[Kill],
    every_s: float,
) -> list[dict[str, Any]]:
    """Return each rise of what replay lost, beside the most that its death explains.

    That is what all shards took in since the snapshot before, or 0 where no shard was killed.

    Args:
      scalars: of the run.
      result: its result.json.
      kills: what was done to it.
      every_s: between two snapshots.
    """
    lost = scalars[REPLAY_LOST_TRANSITIONS]
    per_frame = result["agent_steps"] / result["frames"]
    times_s = lost.wall_s - lost.wall_s[0]
    deaths = sum(kill.role == "replay" for kill in kills)
    losses: list[dict[str, Any]] = []
    for row in np.flatnonzero(np.diff(lost.values) > 0) + 1:
        since = np.searchsorted(times_s, times_s[row] - every_s - _LATE_S)
        taken_in = (lost.frames[row] - lost.frames[since]) * per_frame
        losses.append(
            {
                "at_s": float(times_s[row]),
                "lost": int(lost.values[row] - lost.values[row - 1]),
                "at_most": int(taken_in) if len(losses) < deaths else 0,
            }
        )
    return losses


def sixths(memory: Sequence[Memory]) -> list[float]:
    """Return the median bytes in each sixth of the samples, in order; NaN of none."""
    parts = np.array_split([float(sample.bytes) for sample in memory], 6)
    return [float(np.median(part)) if len(part) else math.nan for part in parts]


def memory_growth(memory: Sequence[Memory]) -> float:
    """Return the rise from the second sixth's median to the last's, as a share; NaN of too few."""
    medians = sixths(memory)
    return medians[-1] / medians[1] - 1.0


def table(kills: Sequence[Kill], losses: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: fault, tries, survived, transitions lost, recovery seconds."""
    lines = [
        "| fault | tries | survived | lost | median s | longest s |",
        "|---|---|---|---|---|---|",
    ]
    for role in _ROLES:
        mine = [kill for kill in kills if kill.role == role]
        back_s = [kill.back_s for kill in mine if kill.back_s is not None]
        lost = f"{sum(loss['lost'] for loss in losses):,}" if role == "replay" else "-"
        times = f"{median(back_s):.1f} | {max(back_s):.1f}" if back_s else "- | -"
        lines.append(f"| {role} killed | {len(mine)} | {len(back_s)} | {lost} | {times} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
