"""CartPole seen as pixels: a crop of the screen around the cart, now and one step ago.

The state of the seed is this crop minus the one before. Replay stores each crop once, as uint8; a
stack of two holds both, and the network takes the difference (common.torsos.FrameDifferences).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from actors.environment_source import EnvironmentSource, FilmedScreen
from actors.gymnasium_environments import GymnasiumEnvironments, gymnasium_spec
from common.config import EnvConfig
from common.heartbeat import Heartbeat
from common.types import EnvironmentSpec, ObservationSpec, TimeSteps

CARTPOLE_PIXELS_ID = "CartPole-v1-pixels"

_CARTPOLE = "CartPole-v1"
# Gymnasium's screen in pixels, and the track that fills its width: x from -2.4 to 2.4.
_SCREEN_SHAPE = (400, 600)
_PIXELS_PER_X = 600 / (2 * 2.4)
# What is cut out: rows 40 to 80 %, and 60 % of the width centred on the cart.
_TOP, _BOTTOM = 160, 320
_WIDTH = 360
# So many pixels a side are averaged to one, which leaves 40 rows.
_SHRINK = 4
FRAME_SHAPE = ((_BOTTOM - _TOP) // _SHRINK, _WIDTH // _SHRINK)
_STACK = 2
# Luma of red, green and blue (ITU-R BT.601), as everywhere where colour becomes grey.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def cartpole_pixels_spec(env: EnvConfig) -> EnvironmentSpec:
    """Return what the id means."""
    vector = gymnasium_spec(dataclasses.replace(env, id=_CARTPOLE))
    height, width = FRAME_SHAPE
    return vector._replace(
        name="cartpole_pixels",
        observation=ObservationSpec(FRAME_SHAPE, "uint8", _STACK),
        protocol=(
            f"{env.id} shows {height} x {width} grey pixels around the cart, now and one step ago;"
            f" {vector.protocol}"
        ),
        scale=1.0 / 255.0,
    )


def cart_crop(screen: NDArray[np.uint8], x: float) -> NDArray[np.uint8]:
    """Return uint8[40, 90], the ink around the cart: 0 where the screen is white, 255 where black.

    The negative, since a stack is padded with zeros at a game's start: an empty screen.

    Args:
      screen: uint8[400, 600, 3], as gymnasium renders it.
      x: the cart's position, -2.4..2.4 and a little beyond; at the edges the crop stays on screen.
    """
    assert screen.shape == (*_SCREEN_SHAPE, 3), screen.shape
    centre = round(x * _PIXELS_PER_X + _SCREEN_SHAPE[1] / 2)
    left = min(max(centre - _WIDTH // 2, 0), _SCREEN_SHAPE[1] - _WIDTH)
    crop = screen[_TOP:_BOTTOM, left : left + _WIDTH]
    height, width = FRAME_SHAPE
    colours = crop.reshape(height, _SHRINK, width, _SHRINK, 3).mean(axis=(1, 3), dtype=np.float32)
    ink: NDArray[np.uint8] = (255.0 - colours @ _LUMA).round().astype(np.uint8)
    return ink


class CartPolePixels:
    """CartPole games that show themselves; not thread-safe."""

    def __init__(self, *, env: EnvConfig, num_envs: int, seed: int, heartbeat: Heartbeat) -> None:
        """Make E environments as `make_environments` says."""
        self._spec = cartpole_pixels_spec(env)
        self._games = GymnasiumEnvironments(
            env=dataclasses.replace(env, id=_CARTPOLE),
            num_envs=num_envs,
            seed=seed,
            render_mode="rgb_array",
            heartbeat=heartbeat,
        )
        self._stacks = np.zeros((num_envs, *self._spec.observation.shape), np.uint8)

    @property
    def spec(self) -> EnvironmentSpec:
        """What one of them is."""
        return self._spec

    @property
    def num_envs(self) -> int:
        """E."""
        return self._games.num_envs

    @property
    def render_frames_per_s(self) -> float:
        """Speed of play."""
        return self._games.render_frames_per_s

    def reset(self) -> TimeSteps:
        """Open a new game everywhere. Only the first call seeds; later ones play on."""
        return self._seen(self._games.reset())

    def step(self, actions: NDArray[np.int64]) -> TimeSteps:
        """Take one agent step everywhere."""
        return self._seen(self._games.step(actions))

    def screens(self) -> tuple[NDArray[np.uint8], ...]:
        """Return uint8[400, 600, 3] for each environment, the whole screen."""
        return self._games.screens()

    def close(self) -> None:
        """End the environments. May be called twice."""
        self._games.close()

    def _seen(self, timesteps: TimeSteps) -> TimeSteps:
        """Put pixels in the place of the four numbers."""
        positions = timesteps.observation[:, 0, 0].tolist()
        before = self._stacks[:, -1:].copy()
        before[timesteps.first] = 0
        crops = [cart_crop(screen, x) for screen, x in zip(self.screens(), positions, strict=True)]
        self._stacks = np.concatenate([before, np.stack(crops)[:, np.newaxis]], axis=1)
        return timesteps._replace(observation=self._stacks.copy())


def _make(
    *, env: EnvConfig, num_envs: int, seed: int, training: bool, heartbeat: Heartbeat
) -> CartPolePixels:
    del training  # no lives here
    return CartPolePixels(env=env, num_envs=num_envs, seed=seed, heartbeat=heartbeat)


def _film(env: EnvConfig, seed: int) -> FilmedScreen:
    return FilmedScreen(CartPolePixels(env=env, num_envs=1, seed=seed, heartbeat=Heartbeat()))


CARTPOLE_PIXELS = EnvironmentSource(
    matches=lambda env: env.id == CARTPOLE_PIXELS_ID,
    spec=cartpole_pixels_spec,
    make=_make,
    film=_film,
    clips_rewards=False,
)
"""CartPole's picture in the place of its four numbers."""
