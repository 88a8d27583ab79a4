"""Environments that mislead or misbehave, each in one way.

Importing this module registers them with gymnasium, so `odd_environments:RaisesInStep-v0` is an id
wherever this folder is on the path.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from numpy.typing import NDArray

VECTOR = Box(0.0, 1.0, (3,), np.float32)
GAME_STEPS = 8
# Of the environments that misbehave in a step: they behave in those before.
BAD_STEP = 5


class Odd(gymnasium.Env[Any, Any]):
    """Games of GAME_STEPS steps, each worth 1; what is odd is overridden."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, space: gymnasium.Space[Any] = VECTOR, worth: Any = 1.0) -> None:
        self.observation_space = space
        self.action_space = Discrete(2)
        self.worth = worth
        self.steps = 0  # of all games
        self.left = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = GAME_STEPS
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.left -= 1
        return self.seen(), self.worth, self.left == 0, False, {}

    def seen(self) -> NDArray[Any]:
        """Return the observation: as much light as there is."""
        assert isinstance(self.observation_space, Box)
        return np.minimum(self.observation_space.high, 1e6).astype(self.observation_space.dtype)


class OddInStep(Odd):
    """Answers step BAD_STEP by what `answer` makes of a sound answer."""

    def __init__(self, answer: Callable[[list[Any]], Any]) -> None:
        super().__init__()
        self.answer = answer

    def step(self, action: Any) -> Any:
        sound = super().step(action)
        return self.answer(list(sound)) if self.steps == BAD_STEP else sound


class OddInReset(Odd):
    """Answers a reset by what `answer` makes of a sound answer, from the `number`-th reset on."""

    def __init__(self, answer: Callable[[list[Any]], Any], number: int = 1) -> None:
        super().__init__()
        self.answer = answer
        self.resets = 0
        self.number = number

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        sound = super().reset(seed=seed, options=options)
        self.resets += 1
        return self.answer(list(sound)) if self.resets >= self.number else sound


class BlackScreen(Odd):
    """Can be drawn, but not in a step: its picture is missing from the third on."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        if self.steps > 2:
            raise RuntimeError("the lamp is broken")
        return np.zeros((16, 16, 3), np.uint8)


class ListScreen(BlackScreen):
    """Draws what is no picture."""

    def render(self) -> Any:
        return [1, 2, 3]


def fail(error: BaseException) -> Any:
    raise error


def put(place: int, value: Any) -> Callable[[list[Any]], Any]:
    """Return what puts a value into a place of an answer."""
    return lambda answer: (*answer[:place], value, *answer[place + 1 :])


def slowly(answer: list[Any], seconds: float) -> Any:
    time.sleep(seconds)
    return tuple(answer)


def only_in_an_actor(**_: Any) -> Odd:
    if "launch.py" in sys.argv[0]:
        return Odd()
    raise OSError("no such display")


def _depends() -> Odd:
    raise gymnasium.error.DependencyNotInstalled('no box2d, run `pip install "odd[box2d]"`')


def closes_badly() -> Odd:
    class Closes(Odd):
        def close(self) -> None:
            raise RuntimeError("the lid is stuck")

    return Closes()


class Wordless(Exception):
    """Cannot even be told."""

    def __str__(self) -> str:
        raise ValueError("no words")


BOMB = RuntimeError("two words\nin two lines")
# What goes wrong in a step, and what its line must say of it.
BAD_STEPS: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "RaisesInStep": (lambda _: fail(BOMB), "raised RuntimeError: two words in two lines"),
    "ExitsInStep": (lambda _: sys.exit(3), "raised SystemExit: 3"),
    "RaisesNoWords": (lambda _: fail(Wordless()), "raised odd_environments.Wordless: <exception"),
    "StopsInStep": (lambda _: next(iter(())), "raised StopIteration"),
    "HugeReward": (put(1, 3e38), "gave the reward 3e+38: must be finite and at most 1e+15"),
    "NanReward": (put(1, float("nan")), "gave the reward nan: must be finite"),
    "NoReward": (put(1, None), "gave the reward None: must be a number"),
    "ManyRewards": (put(1, np.ones(2)), "gave the reward [1. 1.]: must be a number"),
    "WordReward": (put(1, "1.0"), "gave the reward 1.0: must be a number"),
    "EndlessReward": (put(1, 10**400), "gave the reward 1000"),
    "NoFlag": (put(2, None), "gave terminated as None: must be true or false"),
    "WordFlag": (put(3, "no"), "gave truncated as no: must be true or false"),
    "OldStep": (lambda a: tuple(a[:4]), "gave 4 values: must be 5 values"),
    "NoStep": (lambda _: None, "gave NoneType: must be 5 values"),
    "OtherShape": (
        put(0, np.zeros(4, np.float32)),
        "gave an observation float32[4]: must be float32[3]",
    ),
    "OtherType": (put(0, np.zeros(3, complex)), "gave an observation complex128[3]: must be float"),
    "Ragged": (put(0, [[1], [2, 3], 4]), "raised ValueError: "),
    "Nothing": (put(0, None), "gave an observation object[]: must be float32[3]"),
    "NanSeen": (put(0, np.array([0, np.nan, 0])), "an observation that holds nan: must be finite"),
    "HugeSeen": (put(0, np.array([0, 1e39, 0])), "an observation that holds 1e+39: must be finite"),
}
BAD_RESETS: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "RaisesInReset": (lambda _: fail(BOMB), "raised RuntimeError: two words in two lines"),
    "OldReset": (lambda a: a[0], "gave ndarray: must be 2 values, as in gymnasium"),
    "ExitsInReset": (lambda _: sys.exit("bye"), "raised SystemExit: bye"),
}
SPACES: dict[str, gymnasium.Space[Any]] = {
    "Bits": Box(0, 1, (4,), np.uint8),
    "FloatBits": Box(0.0, 1.0, (4,), np.float32),
    "Bytes": Box(0, 255, (4,), np.uint8),
    "Endless": Box(-np.inf, np.inf, (4,), np.float64),
    "Number": Box(-3.0, 7.0, (), np.float32),
    "Picture": Box(0, 255, (40, 40), np.uint8),
    "BitPicture": Box(0, 1, (40, 40), np.uint8),
    "FloatPicture": Box(0.0, 255.0, (40, 40), np.float32),
    "UnitPicture": Box(-1.0, 1.0, (40, 40), np.float32),
    "SmallPicture": Box(0.0, 1.0, (50, 25), np.float32),
    "ColourPicture": Box(0, 255, (40, 40, 3), np.uint8),
    "EndlessPicture": Box(0.0, np.inf, (40, 40), np.float32),
    "HugePicture": Box(0.0, 3e38, (40, 40), np.float32),
    "BlackPicture": Box(0, 0, (40, 40), np.uint8),
    "Empty": Box(0.0, 1.0, (0,), np.float32),
    "Integers": Box(0, 9, (3,), np.int64),
    "Named": Dict({"seen": Box(0.0, 1.0, (3,), np.float32)}),
}


def _register(name: str, make: Callable[..., Any], **settings: Any) -> None:
    gymnasium.register(f"{name}-v0", entry_point=make, **settings)


for _name, (_answer, _) in BAD_STEPS.items():
    _register(_name, lambda answer=_answer: OddInStep(answer))
for _name, (_answer, _) in BAD_RESETS.items():
    _register(_name, lambda answer=_answer: OddInReset(answer))
for _name, _space in SPACES.items():
    _register(_name, lambda space=_space: Odd(space))
_register("Plain", Odd)
_register("InterruptsInStep", lambda: OddInStep(lambda _: fail(KeyboardInterrupt())))
_register("Sevens", lambda: Odd(worth=7))
_register("Large", lambda: OddInStep(put(0, np.full(3, 1e30, np.float32))))
_register("RaisesInMake", lambda: fail(BOMB))
_register("ExitsInMake", lambda: sys.exit(3))
_register("NeedsAPackage", _depends)
_register("NeedsAModule", lambda: __import__("no_such_box2d"))
_register("NoEnvironment", lambda: 7)
_register("ClosesBadly", closes_badly)
_register("OnlyInTheDriver", only_in_an_actor)
_register("BlackScreen", BlackScreen)
_register("ListScreen", ListScreen)
_register("RaisesLater", lambda: OddInReset(lambda _: fail(BOMB), number=100))
_register("SlowReset", lambda: OddInReset(lambda a: slowly(a, 30.0), number=200))
_register("SlowStep", lambda: OddInStep(lambda a: slowly(a, 1e6)))
_register("DiesInStep", lambda: OddInStep(lambda _: os._exit(9)))
