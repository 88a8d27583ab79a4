"""A trained network outside of Troop: load_network, and the README's snippet as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from atari_reference import AtariReference
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from launching import ROOT

from actors.environments import resolve
from common.config import AgentConfig, Config, EnvConfig
from common.networks import build_network, flatten_state, initialise
from common.types import Weights, WeightsVersion
from learner.assembly import load_network
from learner.checkpoint import save
from learner.payload import weights_payload


def save_network(path: Path, config: Config, seed: int = 5) -> torch.nn.Module:
    """Write a checkpoint of a network that never learned, and return the network."""
    spec = resolve(config.env)
    network = build_network(config.agent, spec)
    initialise(network, torch.Generator().manual_seed(seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = Weights(WeightsVersion(0, 3), flatten_state(network), 400)
    save(path, weights_payload(config, spec, weights, 1.5))
    return network


def readme_snippet() -> str:
    """Return the README's lines of Python that play a trained network."""
    block = re.search(r"<!-- play -->\n```python\n(.+?)```", (ROOT / "README.md").read_text(), re.S)
    assert block is not None
    return block[1]


def test_the_snippet_of_the_readme_plays_a_whole_game_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = AgentConfig(network="mlp", hidden=(8,))
    save_network(tmp_path / "runs" / "pong" / "checkpoints" / "best.pt", Config(agent=small))
    names: dict[str, object] = {}
    exec(compile(readme_snippet(), "README.md", "exec"), names)
    score = float(capsys.readouterr().out)
    assert -21 <= score <= 21
    assert score == int(score) != 0, "a whole game of Pong is won or lost"


def test_the_snippet_of_the_readme_plays_in_five_lines() -> None:
    words = [line.split() for line in readme_snippet().splitlines() if line]
    plays = [line for line in words if line[0] not in ("import", "from")]
    assert len(plays) == 5 + 1
    assert plays[-1][0].startswith("print(")


def test_load_network_returns_the_saved_network_ready_to_play(tmp_path: Path) -> None:
    saved = save_network(tmp_path / "best.pt", Config())
    network = load_network(str(tmp_path / "best.pt"))
    observation = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    assert torch.equal(network(observation), saved(observation))
    assert not network.training


def test_network_for_vectors_plays_plain_gymnasium(tmp_path: Path) -> None:
    agent = AgentConfig(network="mlp", hidden=(8,), dueling=False)
    save_network(tmp_path / "best.pt", Config(env=EnvConfig(id="CartPole-v1"), agent=agent))
    network = load_network(tmp_path / "best.pt")
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=1)
    steps, over = 0, False
    while not over:
        action = int(network(torch.as_tensor(observation)[None, None]).argmax())
        observation, _, terminated, truncated, _ = env.step(action)
        steps, over = steps + 1, terminated or truncated
    env.close()
    assert 8 <= steps <= 500


@pytest.mark.parametrize("rom", ["pong", "breakout"])
def test_gymnasiums_wrappers_show_what_the_actors_see(rom: str) -> None:
    # Zero padding at a game's start, maximum of two screens, area resize: else a network that
    # learned here would be blind there.
    gymnasium.register_envs(ale_py)
    env = gymnasium.make(f"ALE/{rom.title()}-v5", frameskip=1, repeat_action_probability=0.0)
    env = FrameStackObservation(AtariPreprocessing(env, noop_max=0), 4, padding_type="zero")
    reference = AtariReference(
        rom=rom,
        seed=0,
        sticky_actions=0.0,
        full_action_space=False,
        noop_max=0,
        life_loss_terminates=False,
        action_repeat_frames=4,
        stack=4,
        max_game_frames=108_000,
    )
    observation, _ = env.reset(seed=0)
    expected = reference.reset()
    rng = np.random.default_rng(1)
    for step in range(300):
        np.testing.assert_array_equal(observation, expected.observation, err_msg=f"step {step}")
        action = int(rng.integers(4))
        observation, reward, terminated, _, _ = env.step(action)
        expected = reference.step(action)
        assert (reward, terminated) == (expected.reward, expected.terminated)
        if terminated:
            break
    env.close()
    assert step > 100
