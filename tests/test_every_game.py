"""Every Atari game runs by the same lines: no game is a special case anywhere."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from ale_py import roms
from launching import HAS_COMPILER, ROOT, result_of

from actors.atari import atari_game
from actors.environments import resolve
from common.config import EnvConfig
from common.presets import PRESETS
from driver.view.events import read_scalars
from driver.view.scores import RANDOM_AND_HUMAN
from launch import main
from learner.checkpoint import CheckpointFolder, load

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")

V5_IDS = sorted(name for name in gymnasium.registry if re.fullmatch(r"ALE/\w+-v5", name))
# Learning, pushing and sampling of a run, small enough for seconds on a processor.
SMALL = (
    *("--serial", "--actors", "1", "--envs-per-actor", "4", "--actor.segment-transitions", "5"),
    *("--replay.capacity", "1000", "--learner.batch-size", "8"),
    *("--learner.target-period-learner-steps", "5", "--evaluator.episodes", "1"),
    *("--learner.threads", "1"),
)


def run(folder: Path, *flags: str) -> dict[str, Any]:
    """Run to the end in this process and return the run's result."""
    assert main([*SMALL, "--run-dir", str(folder), *flags]) == 0
    return result_of(folder)


def expect_whole(folder: Path, result: dict[str, Any], frames: int) -> None:
    """Assert that the run played so much, learned, evaluated and saved what it learned."""
    assert result["end_reason"] == "done"
    assert result["frames"] >= frames
    assert result["learner_steps"] > 0
    assert math.isfinite(result["last_eval_score"])
    newest = CheckpointFolder(folder / "checkpoints", 1).newest()
    assert newest is not None
    assert load(newest)["counters"]["learner_step"] == result["learner_steps"]
    assert all(math.isfinite(loss) for loss in read_scalars(folder)["learner/td_loss"][1])


def test_every_one_player_game_is_registered_and_known_by_its_id() -> None:
    """So that the slow test below is about all of them."""
    known = [atari_game(EnvConfig(id=name)) for name in V5_IDS]
    found = {game.rom for game in known if game is not None}
    assert found == set(roms.get_all_rom_ids()) - {"combat", "joust", "maze_craze", "warlords"}
    assert found >= set(RANDOM_AND_HUMAN)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", V5_IDS)
def test_every_registered_game_steps_1000_actions_and_evaluates(
    env_id: str, tmp_path: Path
) -> None:
    """250 actions in each of 4 environments, a few learner steps, and a game of <= 300 actions."""
    folder = tmp_path / "run"
    result = run(
        folder,
        *("--env", env_id, "--total-frames", "4000", "--env.max-game-frames", "1200"),
        *("--replay.min-size", "200", "--replay.samples-per-insert", "0.05"),
    )
    expect_whole(folder, result, frames=4_000)
    scored = resolve(EnvConfig(id=env_id)).name in RANDOM_AND_HUMAN
    assert ("eval/human_normalized_score" in read_scalars(folder)) == scored


GAMES = ("breakout", "space_invaders", "qbert", "seaquest", "beam_rider", "ms_pacman")


def expect_preset(folder: Path, preset: str, game: str) -> None:
    """Assert that the network saved last is for this game under this preset."""
    newest = CheckpointFolder(folder / "checkpoints", 1).newest()
    assert newest is not None
    spec = load(newest)["spec"]
    assert spec["name"] == game
    assert f"preset {preset}" in (folder / "log.txt").read_text()
    if preset == "machado":
        assert spec["num_actions"] == 18


@pytest.mark.parametrize(("game", "preset"), [("breakout", "apex"), ("ms_pacman", "machado")])
def test_other_games_than_pong_run_under_the_presets(
    game: str, preset: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    result = run(
        folder,
        *("--preset", preset, "--env", game),
        *("--total-frames", "400", "--env.max-game-frames", "200"),
        *("--replay.min-size", "40", "--replay.samples-per-insert", "0.5"),
    )
    expect_whole(folder, result, frames=400)
    expect_preset(folder, preset, game)


def multiplies_bfloat16() -> bool:
    """Return whether this processor says that it has instructions for it."""
    return bool({"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split()))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("preset", ["apex", "machado"])
@pytest.mark.parametrize("game", GAMES)
def test_other_games_than_pong_take_1000_learner_steps(
    game: str, preset: str, tmp_path: Path
) -> None:
    """All as in the preset, but for when learning begins, how long it goes on, and one core.

    Where this processor multiplies bfloat16, the learner does too: under half the time.
    """
    config = PRESETS[preset].config
    assert config.samples_per_insert is not None
    begin = 2_000
    agent_steps = begin + 1_010 * config.learner.batch_size / config.samples_per_insert
    folder = tmp_path / "run"
    flags = (
        *("--preset", preset, "--env", game, "--replay.min-size", str(begin)),
        *("--total-frames", str(4 * int(agent_steps)), "--evaluator.episodes", "1"),
        *("--serial", "--learner.threads", "1"),
        *("--learner.compile", "on" if HAS_COMPILER else "off"),
        *("--learner.precision", "bfloat16" if multiplies_bfloat16() else "float32"),
    )
    assert main([*flags, "--run-dir", str(folder)]) == 0
    result = result_of(folder)
    expect_whole(folder, result, frames=4 * begin)
    assert result["learner_steps"] >= 1_000
    expect_preset(folder, preset, game)


# --- no special case ------------------------------------------------------------------------------

# Where games are named on purpose: the table of scores, the ROMs that nobody can play alone, and
# the settings, which name the game to play.
NAMES_GAMES = {"driver/view/scores.py", "actors/atari.py", "common/config.py", "common/presets.py"}


# What ids have around a game's title.
AROUND = re.compile(r"^ALE/|(NoFrameskip|Deterministic)?(-ram)?-v\d+$")


def named_games(source: str) -> set[str]:
    """Return the strings of a piece of code that are a ROM's name, a game's title or an id."""
    known = {name for rom in roms.get_all_rom_ids() for name in (rom, rom.title().replace("_", ""))}
    constants: Iterable[ast.AST] = ast.walk(ast.parse(source))
    return {
        node.value
        for node in constants
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and AROUND.sub("", node.value) in known
    }


def test_no_code_names_a_game() -> None:
    files = [ROOT / "launch.py"]
    for package in ("actors", "common", "driver", "learner", "replay"):
        files += (ROOT / package).rglob("*.py")
    assert len(files) > 40
    found = {
        str(file.relative_to(ROOT)): names
        for file in files
        if (names := named_games(file.read_text()))
    }
    assert {file: names for file, names in found.items() if file not in NAMES_GAMES} == {}


@pytest.mark.parametrize(
    "known_bad",
    [
        'if spec.name == "breakout": fire()',
        'X = {"MsPacman": 3}',
        'if env.id == "ALE/Breakout-v5": fire()',
        'if env.id in ("QbertNoFrameskip-v4",): fire()',
    ],
)
def test_code_that_names_a_game_is_noticed(known_bad: str) -> None:
    assert len(named_games(known_bad)) == 1
