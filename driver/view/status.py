"""The status of a run: what it tells, as one line and as a block on a terminal."""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from driver.view.quantities import (
    format_bytes,
    format_count,
    format_duration,
    format_percent,
    format_score,
)

# The block is no wider than this: on a wide terminal its columns would drift apart.
_MAX_WIDTH = 100

_HINTS = {
    "acting": "more actors, on more cores, would make the run faster",
    "learning": "a faster device, or fewer samples per insert, would make the run faster",
    "replay": "more shards would make the run faster",
}


class RunStatus(NamedTuple):
    """Everything the status block shows. NaN wherever there is nothing to tell yet.

    Fields:
      frames: emulator frames that replay has accepted.
      total_frames: where the run ends.
      episodes: training games that ended.
      total_episodes: where the run ends if that comes first; None: by frames alone.
      eta_s: seconds until either.
      frames_per_s: emulator frames per second, lately.
      learner_steps_per_s: gradient updates per second, lately.
      train_return: mean raw return of the latest training games.
      eval_score: mean raw return of the latest evaluation.
      human_normalized: the same with random play 0 and human play 1; NaN for a game without
        published scores.
      samples_per_insert: times a transition is trained on, so far.
      replay_fill: live transitions over the capacity, from 0 to 1.
      replay_bytes: compressed bytes of the live segments.
      policy_lag: learner steps between the weights that act and the newest.
      limiting_stage: what limits the run now: "acting", "replay" or "learning", or another reason
        in a few words.
      elapsed_s: seconds since this run (or its resumption) started.
    """

    frames: int
    total_frames: int
    episodes: int
    total_episodes: int | None
    eta_s: float
    frames_per_s: float
    learner_steps_per_s: float
    train_return: float
    eval_score: float
    human_normalized: float
    samples_per_insert: float
    replay_fill: float
    replay_bytes: float
    policy_lag: float
    limiting_stage: str
    elapsed_s: float


def status_line(status: RunStatus) -> str:
    """Return the status as one line of ASCII, for pipes and logs."""
    return ", ".join(
        (
            f"{format_count(status.frames)}/{format_count(status.total_frames)} frames"
            f"{_games(status)} ({format_percent(_done(status))})",
            f"ETA {format_duration(status.eta_s)}",
            f"{format_count(status.frames_per_s)} frames/s",
            f"{format_count(status.learner_steps_per_s)} learner steps/s",
            f"return {format_score(status.train_return)}",
            f"eval {_evaluation(status)}",
            f"samples/insert {format_count(status.samples_per_insert)}",
            f"replay {_replay(status)}",
            f"policy lag {format_count(status.policy_lag)}",
            f"limited by {status.limiting_stage}",
        )
    )


def status_block(status: RunStatus) -> RenderableType:
    """Return the status as a framed block for a terminal."""
    progress = Table.grid(padding=(0, 1), expand=True)
    progress.add_column(no_wrap=True)
    progress.add_column(ratio=1)
    progress.add_column(no_wrap=True, justify="right")
    progress.add_column(no_wrap=True, justify="right")
    progress.add_row(
        Text.assemble(
            (format_count(status.frames), "bold"),
            f" of {format_count(status.total_frames)} frames{_games(status)}",
        ),
        ProgressBar(total=1.0, completed=_done(status)),
        format_percent(_done(status)),
        Text.assemble(("ETA ", "dim"), (format_duration(status.eta_s), "bold")),
    )
    grid = Table.grid(padding=(0, 1), expand=True)
    for ratio in (9, 11):
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(ratio=ratio, no_wrap=True, overflow="ellipsis")
    lag = format_count(status.policy_lag)
    rows = (
        ("elapsed", format_duration(status.elapsed_s), "return", format_score(status.train_return)),
        (
            "acting",
            f"{format_count(status.frames_per_s)} frames/s",
            "evaluation",
            _evaluation(status),
        ),
        (
            "learning",
            f"{format_count(status.learner_steps_per_s)} steps/s",
            "samples/insert",
            format_count(status.samples_per_insert),
        ),
        ("replay", _replay(status), "policy lag", lag if lag == "-" else f"{lag} learner steps"),
    )
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    stage = status.limiting_stage
    limit = Text.assemble(
        ("limited by ", "dim"), (stage, "bold yellow"), no_wrap=True, overflow="ellipsis"
    )
    if stage in _HINTS:
        limit.append(f": {_HINTS[stage]}", "dim")
    return Panel(
        Group(progress, grid, limit),
        title="Troop",
        title_align="left",
        border_style="cyan",
        width=_MAX_WIDTH,
    )


def _done(status: RunStatus) -> float:
    shares = [status.frames / max(1, status.total_frames)]
    if status.total_episodes is not None:
        shares.append(status.episodes / max(1, status.total_episodes))
    return min(1.0, max(shares))


def _games(status: RunStatus) -> str:
    if status.total_episodes is None:
        return ""
    return f", {status.episodes:,}/{status.total_episodes:,} games"


def _evaluation(status: RunStatus) -> str:
    share = format_percent(status.human_normalized)
    return format_score(status.eval_score) + ("" if share == "-" else f" ({share} of human)")


def _replay(status: RunStatus) -> str:
    return f"{format_percent(status.replay_fill)} full, {format_bytes(status.replay_bytes)}"
