"""Atari games in ale-py's C++ vector: what an id means, and the rules at the edges of games.

About ale-py's AtariVectorEnv (0.12), each held by a test:
* `episodic_life=True` restarts the whole game at each life. `life_loss_info=True` reports a lost
  life as `terminated` like a game's end, and then hides that the time limit cut the game in the
  same step, so that a reset comes which nothing announced. Both stay off here: `terminated` means
  game over and nothing else, and lost lives are read from the lives before and after the step, by
  the rule that ale-py itself has.
* Every step returns fresh arrays that the C++ side never writes again: observations may be kept
  without a copy.
* An action out of range makes the caller wait for ever, so the range is checked here, and the
  emulator is asked how many there are: 18 in the full set, but 9 for Skiing and Lost Luggage.
* At the time limit the last screen of the step is not captured: the observation of a truncated game
  is the maximum of the screen before and the third frame of the step. One observation in 27,000;
  left as it is.
* The two-player ROMs end the process when they are loaded.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import ale_py
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from actors.environment_calls import EnvironmentCalls
from actors.environment_source import EnvironmentSource
from actors.timesteps import check_actions, opening_timesteps
from common.config import EnvConfig
from common.heartbeat import Heartbeat
from common.types import EnvironmentSpec, ObservationSpec, TimeSteps

FRAME_SHAPE = (84, 84)
_FRAMES_PER_S = 60
# What gymnasium's registry says of the ids that are sticky (Machado et al. 2018, section 5).
_STICKY = 0.25
# ROMs that only two can play: ale-py registers no environment for them.
_TWO_PLAYERS = frozenset({"combat", "joust", "maze_craze", "warlords"})


class AtariGame(NamedTuple):
    """What an Atari id means.

    Fields:
      rom: ale-py's name of the game, e.g. "ms_pacman".
      sticky_actions: probability that the emulator repeats the last action.
    """

    rom: str
    sticky_actions: float


def atari_game(env: EnvConfig) -> AtariGame | None:
    """Return the Atari game that the id names; None where it names none.

    Raises:
      ValueError: an old gym id whose frame skip is random.
    """
    match = re.fullmatch(r"(ALE/)?(\w+?)(NoFrameskip|Deterministic)?(?:-v(\d+))?", env.id)
    if match is None:
        return None
    namespace, name, suffix, version = match.groups()
    rom = games().get(name.replace("_", "").lower())
    if rom is None:
        return None
    kind = (namespace is not None, suffix is not None, version)
    if kind == (False, False, None):
        sticky = 0.0
    elif kind == (True, False, "5") or kind == (False, True, "0"):
        sticky = _STICKY
    elif kind == (False, True, "4"):
        sticky = 0.0
    elif kind in {(False, False, "0"), (False, False, "4")}:
        title = atari_title(rom)
        raise ValueError(
            f"Expect `env.id` with a fixed frame skip, actually: {env.id!r}, which skips 2 to 4"
            f" frames at random; use {rom}, ALE/{title}-v5 or {title}NoFrameskip-v4"
        )
    else:
        return None
    return AtariGame(rom, sticky if env.sticky_actions is None else env.sticky_actions)


def atari_vector(env: EnvConfig, num_envs: int, **look: Any) -> AtariVectorEnv:
    """Return ale-py's vector for an Atari id.

    Vectors with the same `env` and seed play the same game under the same actions, however they
    look at it.

    Args:
      env: what to play; its id must name an Atari game.
      num_envs: E.
      look: how observations look: `grayscale`, `img_height`, `img_width`, `stack_num`.
    """
    game = atari_game(env)
    assert game is not None, env.id
    return AtariVectorEnv(
        game.rom,
        num_envs,
        num_threads=1,  # 0 would take every core, in each actor
        frameskip=env.action_repeat_frames,
        max_num_frames_per_episode=env.max_game_frames,
        repeat_action_probability=game.sticky_actions,
        full_action_space=env.full_action_space,
        noop_max=env.noop_max + 1,  # ale-py draws from 0 to noop_max - 1
        # Off by default: games begin with no-ops only, as in Mnih et al. 2015 and Machado et al.
        # 2018, and the agent learns to fire, which it needs after a lost life anyway.
        use_fire_reset=env.fire_reset,
        episodic_life=False,
        life_loss_info=False,
        reward_clipping=False,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        **look,
    )


def atari_spec(env: EnvConfig) -> EnvironmentSpec:
    """Return what the Atari id means.

    Raises:
      ValueError: its ROM is not there; one line.
    """
    game = atari_game(env)
    assert game is not None, env.id
    console = _console(game.rom)
    num_actions = console.legal_actions if env.full_action_space else console.minimal_actions
    actions = f"{'the full set of ' * env.full_action_space}{num_actions} actions"
    fire = " and FIRE" if env.fire_reset else ""
    signals = ["ends the value"] if env.life_loss_terminates else []
    if env.life_loss_reward:
        signals.append(f"is worth {env.life_loss_reward:g}")
    life = f"{' and '.join(signals)} in training" if signals else "is no signal"
    return EnvironmentSpec(
        name=game.rom,
        observation=ObservationSpec(FRAME_SHAPE, "uint8", env.stack),
        num_actions=num_actions,
        action_repeat_frames=env.action_repeat_frames,
        protocol=(
            f"{env.id} means {atari_title(game.rom)} with sticky actions {game.sticky_actions:g},"
            f" {actions} of {env.action_repeat_frames} frames, up to {env.noop_max} no-op frames"
            f"{fire} at the start, a limit of {env.max_game_frames:,} frames; a lost life {life}."
        ),
        scale=1.0 / 255.0,
    )


class AtariEnvironments:
    """Atari games, stepped by one C++ thread; the protocol of Mnih et al. 2015 (Methods).

    Frame skip, maximum of the last two screens, 84 x 84 grey, zero-padded stack. Not thread-safe.
    """

    def __init__(
        self,
        *,
        env: EnvConfig,
        num_envs: int,
        seed: int,
        training: bool,
        heartbeat: Heartbeat,
    ) -> None:
        """Make E environments as `make_environments` says."""
        self._spec = atari_spec(env)
        self._calls = EnvironmentCalls(env.id, heartbeat)
        self._vector = atari_vector(
            env,
            num_envs,
            grayscale=True,
            img_height=FRAME_SHAPE[0],
            img_width=FRAME_SHAPE[1],
            stack_num=env.stack,
        )
        self._num_envs = num_envs
        self._seed: int | None = seed
        self._life_loss_terminates = training and env.life_loss_terminates
        self._lives = np.zeros(num_envs, np.int32)
        self._game_over = np.zeros(num_envs, np.bool_)

    @property
    def spec(self) -> EnvironmentSpec:
        """What one of them is."""
        return self._spec

    @property
    def num_envs(self) -> int:
        """E."""
        return self._num_envs

    def reset(self) -> TimeSteps:
        """Open a new game everywhere. Only the first call seeds; later ones play on."""
        seed, self._seed = self._seed, None
        with self._calls.into("reset"):
            observation, info = self._vector.reset(seed=seed)
        self._lives = info["lives"]
        self._game_over = np.zeros(self._num_envs, np.bool_)
        return opening_timesteps(observation)

    def step(self, actions: NDArray[np.int64]) -> TimeSteps:
        """Take one agent step everywhere."""
        check_actions(actions, self._num_envs, self._spec.num_actions)
        with self._calls.into("step"):
            observation, reward, over, truncated, info = self._vector.step(actions)
        # C++ resets exactly where it said terminated or truncated, life loss being off.
        first, self._game_over = self._game_over, over | truncated
        before, self._lives = self._lives, info["lives"]
        life_lost = (self._lives < before) & ~first
        terminated = over
        if self._life_loss_terminates:
            terminated = over | (life_lost & (self._lives > 0))
        return TimeSteps(
            observation=observation,
            reward=reward.astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            first=first,
            game_over=self._game_over,
            life_lost=life_lost,
        )

    def close(self) -> None:
        """End the environments. May be called twice."""
        self._vector.close()
        # The C++ object joins its worker thread when it goes.
        vars(self._vector).pop("ale", None)


class FilmedAtari:
    """An Atari game and its twin in colour: the same seed, the same actions, the whole screen."""

    def __init__(self, env: EnvConfig, seed: int) -> None:
        self._played = AtariEnvironments(
            env=env, num_envs=1, seed=seed, training=False, heartbeat=Heartbeat()
        )
        game = atari_game(env)
        assert game is not None, env.id
        height, width = _console(game.rom).screen_shape
        self._twin = atari_vector(
            env, 1, grayscale=False, img_height=height, img_width=width, stack_num=1
        )
        self._seed = seed
        self.pictures_per_s = _FRAMES_PER_S / env.action_repeat_frames

    def reset(self) -> NDArray[Any]:
        """Open the game and return uint8[1, k, 84, 84]."""
        self._picture, _ = self._twin.reset(seed=self._seed)
        return self._played.reset().observation

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[Any], float, bool]:
        """Return the observation, the reward and whether the game is over."""
        timesteps = self._played.step(actions)
        self._picture, reward, *_ = self._twin.step(actions)
        assert reward[0] == timesteps.reward[0], "the game and its twin in colour went apart"
        return timesteps.observation, float(timesteps.reward[0]), bool(timesteps.game_over[0])

    def picture(self) -> NDArray[np.uint8]:
        """Return uint8[H, W, 3], the whole screen in colour."""
        # The console's pixels are about twice as wide as they are high; and all is doubled, since
        # 160 x 210 is small.
        picture = np.asarray(self._picture[0, 0], np.uint8)
        return picture.repeat(2, axis=0).repeat(4, axis=1)

    def close(self) -> None:
        """End both."""
        self._played.close()
        self._twin.close()


def atari_title(rom: str) -> str:
    """Return "MsPacman" for "ms_pacman", the spelling of the registered ids."""
    return rom.title().replace("_", "")


@functools.cache
def games() -> dict[str, str]:
    """Return the playable ROMs by their names in lower case without underscores."""
    return {rom.replace("_", ""): rom for rom in roms.get_all_rom_ids() if rom not in _TWO_PLAYERS}


class _Console(NamedTuple):
    """What only a loaded ROM tells.

    Fields:
      minimal_actions: how many actions the game itself knows.
      legal_actions: how many the console has for it, the full set.
      screen_shape: (height, width) of its screen in pixels.
    """

    minimal_actions: int
    legal_actions: int
    screen_shape: tuple[int, int]


@functools.cache
def _console(rom: str) -> _Console:
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner on stderr
    emulator = ale_py.ALEInterface()
    try:
        path = roms.get_rom_path(rom)
    except OSError as error:  # not there, or of another hash
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"Expect the ROM of {rom} in ale-py's folder, or in ALE_ROMS_DIR where that is set,"
            f" actually: {reason}; `pip install --force-reinstall ale-py` brings all ROMs"
        ) from error
    assert path is not None, rom
    emulator.loadROM(path)
    height, width = emulator.getScreenDims()
    minimal, legal = emulator.getMinimalActionSet(), emulator.getLegalActionSet()
    return _Console(len(minimal), len(legal), (height, width))


ATARI = EnvironmentSource(
    matches=lambda env: atari_game(env) is not None,
    spec=atari_spec,
    make=AtariEnvironments,
    film=FilmedAtari,
    clips_rewards=True,
)
"""The games of ale-py."""
