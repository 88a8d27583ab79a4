"""CartPole's pixels: what the crop holds, where it is cut, and that the games are CartPole's."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from actors.cartpole_pixels import CARTPOLE_PIXELS_ID, FRAME_SHAPE, CartPolePixels, cart_crop
from actors.environments import make_environments, resolve
from common.config import EnvConfig
from common.torsos import FrameDifferences
from common.types import EnvironmentSpec, ObservationSpec

PIXELS = EnvConfig(id=CARTPOLE_PIXELS_ID)
WHITE = 255
POLE = (202, 152, 101)


def white_screen() -> np.ndarray:
    return np.full((400, 600, 3), WHITE, np.uint8)


def rendered(env: Any) -> np.ndarray:
    screen: np.ndarray = env.render()
    return screen


def test_id_means_two_small_grey_frames_of_cartpole() -> None:
    assert resolve(PIXELS) == EnvironmentSpec(
        name="cartpole_pixels",
        observation=ObservationSpec((40, 90), "uint8", 2),
        num_actions=2,
        action_repeat_frames=1,
        protocol=(
            "CartPole-v1-pixels shows 40 x 90 grey pixels around the cart, now and one step ago;"
            " CartPole-v1 is gymnasium's, with 2 actions of 1 frame and a limit of 500 frames;"
            " the Atari options do not apply."
        ),
        scale=1.0 / 255.0,
    )


# --- the crop -------------------------------------------------------------------------------------


def test_white_screen_is_no_ink_and_black_one_is_all_ink() -> None:
    assert not cart_crop(white_screen(), 0.0).any()
    assert (cart_crop(np.zeros_like(white_screen()), 0.0) == 255).all()


def test_crop_is_rows_40_to_80_percent_and_60_percent_of_the_width_around_the_cart() -> None:
    for x, left in ((0.0, 300 - 180), (0.8, 400 - 180), (-0.8, 200 - 180)):
        screen = white_screen()
        screen[160:320, left : left + 360] = 0
        assert (cart_crop(screen, x) == 255).all()
        assert not cart_crop(WHITE - screen, x).any()  # and there is nothing else in it


@pytest.mark.parametrize(("x", "left"), [(-2.4, 0), (2.4, 240), (-2.6, 0), (2.6, 240)])
def test_crop_stays_on_the_screen_at_its_edges(x: float, left: int) -> None:
    screen = white_screen()
    screen[160:320, left : left + 360] = 0
    assert (cart_crop(screen, x) == 255).all()


def test_four_by_four_pixels_become_their_mean_and_colours_their_luma() -> None:
    screen = white_screen()
    screen[160:164, 120:124] = POLE
    screen[164:168, 124:126] = 0  # the left half of the second pixel of the second row
    crop = cart_crop(screen, 0.0)
    luma = 0.299 * POLE[0] + 0.587 * POLE[1] + 0.114 * POLE[2]
    assert crop[0, 0] == round(255 - luma)
    assert crop[1, 1] in (127, 128)  # 255 / 2
    assert np.count_nonzero(crop) == 2


def test_cart_stands_in_the_middle_of_the_crop_wherever_it_is() -> None:
    env: Any = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    env.reset(seed=0)
    for x in (-0.9, 0.0, 0.7):
        env.unwrapped.state = np.array([x, 0.0, 0.0, 0.0])
        # The cart is 50 pixels wide and covers rows 285 to 315 of the screen; row 36 of the crop,
        # 304 to 307 there, lies below the pole and the track's line.
        cart = cart_crop(rendered(env), x)[36] > 200
        assert cart.sum() == pytest.approx(50 / 4, abs=1.5)
        assert np.flatnonzero(cart).mean() == pytest.approx(44.5, abs=1.0)
    env.close()


# --- the games ------------------------------------------------------------------------------------


def test_games_are_those_of_cartpole_and_states_are_this_crop_and_the_one_before() -> None:
    environments = make_environments(PIXELS, 2, 11, True)
    assert isinstance(environments, CartPolePixels)
    numbers = make_environments(EnvConfig(id="CartPole-v1"), 2, 11, True)
    screens: list[Any] = [gymnasium.make("CartPole-v1", render_mode="rgb_array") for _ in range(2)]
    seen, expected = environments.reset(), numbers.reset()
    for e, env in enumerate(screens):
        env.reset(seed=11 + e)
    before = np.zeros((2, *FRAME_SHAPE), np.uint8)
    rng = np.random.default_rng(0)
    games = 0
    for _ in range(120):
        for name in ("reward", "terminated", "truncated", "first", "game_over", "life_lost"):
            np.testing.assert_array_equal(getattr(seen, name), getattr(expected, name), name)
        for e, env in enumerate(screens):
            if seen.first[e]:
                before[e] = 0
            crop = cart_crop(rendered(env), float(expected.observation[e, 0, 0]))
            np.testing.assert_array_equal(seen.observation[e], np.stack([before[e], crop]))
            before[e] = crop
        actions = rng.integers(2, size=2)
        over = expected.game_over
        seen, expected = environments.step(actions), numbers.step(actions)
        for e, env in enumerate(screens):
            if over[e]:
                env.reset()
                games += 1
            else:
                env.step(int(actions[e]))
    assert games >= 4
    for env in (environments, numbers, *screens):
        env.close()


def test_network_sees_a_moving_pole_as_this_crop_less_the_one_before() -> None:
    import torch

    environments = make_environments(PIXELS, 1, 3, True)
    environments.reset()
    for _ in range(6):  # until it moves by whole pixels
        observation = environments.step(np.ones(1, np.int64)).observation
    environments.close()
    screens = WHITE - observation.astype(np.float32)  # back from ink to brightness
    expected = screens[:, 1] - screens[:, 0]
    difference = FrameDifferences()(torch.from_numpy(observation.astype(np.float32)))
    np.testing.assert_array_equal(difference[:, 0].numpy(), expected)
    assert np.count_nonzero(expected) > 10


def test_first_state_of_a_game_shows_the_scene_on_an_empty_sheet() -> None:
    environments = make_environments(PIXELS, 1, 0, True)
    first = environments.reset()
    environments.close()
    assert not first.observation[0, 0].any()
    assert 50 < np.count_nonzero(first.observation[0, 1]) < first.observation[0, 1].size / 4


def test_configured_limit_truncates() -> None:
    environments = make_environments(
        EnvConfig(id=CARTPOLE_PIXELS_ID, max_game_frames=4), 1, 0, True
    )
    environments.reset()
    played = [environments.step(np.array([step % 2])) for step in range(4)]
    environments.close()
    assert [bool(timesteps.truncated[0]) for timesteps in played] == [False, False, False, True]
    assert not any(timesteps.terminated[0] for timesteps in played)
