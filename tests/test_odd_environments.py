"""Environments that mislead or misbehave: what is told of them, and what is learned from them."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import odd_environments
import pytest
import torch
from launching import ON_THE_PATH, launch, result_of
from odd_environments import BAD_RESETS, BAD_STEP, BAD_STEPS

from actors.environment_calls import EnvironmentCalls
from actors.environments import (
    clips_rewards,
    make_environments,
    make_run_environments,
    reading,
    resolve,
)
from actors.film import expect_pictures
from common.config import AgentConfig, EnvConfig
from common.endings import EnvironmentFailed, Interrupted
from common.heartbeat import Heartbeat
from common.networks import build_network
from driver.interrupts import Interrupts
from launch import main
from learner.checkpoint import CheckpointFolder, load, save
from learner.payload import spec_from_dict, spec_to_dict

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")
Command = Callable[..., subprocess.CompletedProcess[str]]

MLP = AgentConfig(network="mlp", hidden=(8,), dueling=False)


def env_of(name: str, **settings: bool) -> EnvConfig:
    return EnvConfig(id=f"odd_environments:{name}-v0", **settings)


# --- how observations are read --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scale", "said"),
    [
        ("Bits", 1.0, "read as they are"),
        ("FloatBits", 1.0, "read as they are"),
        ("Bytes", 1.0, "read as they are"),
        ("Endless", 1.0, "read as they are"),
        ("Number", 1.0, "read as they are"),
        ("Picture", 1 / 255, "divided by 255"),
        ("ColourPicture", 1 / 255, "divided by 255"),
        ("BitPicture", 1.0, "read as they are"),
        ("FloatPicture", 1 / 255, "divided by 255"),
        ("UnitPicture", 1.0, "read as they are"),
    ],
)
def test_pictures_are_scaled_by_their_bounds_and_vectors_are_not(
    name: str, scale: float, said: str
) -> None:
    spec = resolve(env_of(name))
    assert spec.scale == scale
    assert f"Observations are {said}; " in reading(env_of(name), spec)


def test_the_network_sees_the_same_in_bytes_and_in_floats() -> None:
    for bytes_name, floats_name in (("Bits", "FloatBits"), ("Picture", "FloatPicture")):
        seen = []
        for name in (bytes_name, floats_name):
            environments = make_environments(env_of(name), 2, 0, True)
            network = build_network(MLP, environments.spec)
            observation = torch.from_numpy(environments.reset().observation)
            seen.append(network.as_float(observation))
            before = observation.clone()
            network(observation)
            assert torch.equal(observation, before)
        assert torch.equal(*seen)
        assert seen[0].max() == 1.0


@pytest.mark.parametrize("name", ["EndlessPicture", "HugePicture", "BlackPicture"])
def test_pictures_without_bounds_to_scale_by_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"Expect pictures whose bounds .* in '.*:{name}-v0'"):
        resolve(env_of(name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Empty", "Expect observations of >= 1 number, actually: Box"),
        ("Integers", "Expect observations that are uint8 or float arrays, actually: Box.*int64"),
        ("Named", "Expect observations that are uint8 or float arrays, actually: Dict"),
        ("NeedsAPackage", 'no box2d, run `pip install "odd.box2d."`'),
        ("NeedsAModule", "No module named 'no_such_box2d'"),
    ],
)
def test_spaces_that_no_network_takes_and_missing_packages_are_told(
    name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        resolve(env_of(name))
    assert "\n" not in str(refused.value)


def test_a_module_that_lacks_another_tells_which() -> None:
    with pytest.raises(ValueError, match="that can be made, .* No module named 'no_such_engine'"):
        resolve(EnvConfig(id="odd_needs:Anything-v0"))


def test_old_checkpoints_mean_what_they_meant() -> None:
    """Then all bytes were divided by 255, also those of vectors, and floats were not."""
    for name, meant in (("Bits", 1 / 255), ("Picture", 1 / 255), ("FloatPicture", 1.0)):
        spec = resolve(env_of(name))
        plain = spec_to_dict(spec)
        assert spec_from_dict(plain) == spec
        del plain["scale"]
        assert spec_from_dict(plain) == spec._replace(scale=meant)


# --- rewards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "clips"),
    [
        (EnvConfig(id="pong"), True),
        (EnvConfig(id="pong", clip_rewards=False), False),
        (env_of("Sevens"), False),
        (env_of("Sevens", clip_rewards=True), True),
        (EnvConfig(id="CartPole-v1-pixels"), False),
    ],
)
def test_rewards_are_clipped_on_atari_or_where_asked_for_and_the_start_says_so(
    env: EnvConfig, clips: bool
) -> None:
    assert clips_rewards(env) == clips
    said = "rewards are clipped to [-1, 1]." if clips else "rewards are learned as they are, not"
    assert said in reading(env, resolve(env))


@pytest.mark.parametrize("clip_rewards", [False, True])
def test_clipped_rewards_may_be_large_but_must_be_finite(clip_rewards: bool) -> None:
    environments = make_environments(env_of("HugeReward", clip_rewards=clip_rewards), 1, 0, True)
    environments.reset()
    idle = np.zeros(1, np.int64)
    for _ in range(BAD_STEP - 1):
        environments.step(idle)
    if clip_rewards:
        assert environments.step(idle).reward[0] == np.float32(3e38)
    else:
        with pytest.raises(EnvironmentFailed, match=r"in step 5, gave the reward 3e\+38"):
            environments.step(idle)


# --- what an environment may do wrong -------------------------------------------------------------


@pytest.mark.parametrize("name", BAD_STEPS)
def test_whatever_a_step_does_wrong_is_one_failure_in_one_line(name: str) -> None:
    environments = make_environments(env_of(name), 2, 0, True)
    environments.reset()
    idle = np.zeros(2, np.int64)
    for _ in range(BAD_STEP - 1):
        environments.step(idle)
    with pytest.raises(EnvironmentFailed) as failed:
        environments.step(idle)
    line = str(failed.value)
    start = f"the environment odd_environments:{name}-v0, in step {BAD_STEP}, "
    assert line.startswith(start + BAD_STEPS[name][1]) or BAD_STEPS[name][1] in line
    assert "\n" not in line
    assert len(line) < 600
    has_raised = " raised " in line
    assert ("Traceback" in failed.value.details) == has_raised
    again = pickle.loads(pickle.dumps(failed.value))
    assert (str(again), again.details) == (line, failed.value.details)


def test_a_signal_in_the_middle_of_a_call_is_no_failure_of_the_environment() -> None:
    calls = EnvironmentCalls("any", Heartbeat())
    with Interrupts(echo_s=0.0), pytest.raises(Interrupted), calls.into("step 1"):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(EnvironmentFailed), calls.into("step 2"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", BAD_RESETS)
def test_whatever_a_reset_does_wrong_is_one_failure_in_one_line(name: str) -> None:
    environments = make_environments(env_of(name), 1, 0, True)
    with pytest.raises(EnvironmentFailed) as failed:
        environments.reset()
    start = f"the environment odd_environments:{name}-v0, in reset, "
    assert str(failed.value) == start + BAD_RESETS[name][1]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("RaisesInMake", "in make, raised RuntimeError: two words in two lines"),
        ("ExitsInMake", "in make, raised SystemExit: 3"),
        ("NoEnvironment", "in make, raised TypeError: The environment must inherit from the gymna"),
        ("ClosesBadly", "in close, raised RuntimeError: the lid is stuck"),
    ],
)
def test_environments_that_cannot_be_made_say_why(name: str, line: str) -> None:
    with pytest.raises(EnvironmentFailed, match=line):
        resolve(env_of(name))


def test_a_module_that_raises_at_import_says_why() -> None:
    with pytest.raises(EnvironmentFailed, match="raised LookupError: no licence for these games"):
        resolve(EnvConfig(id="odd_module:Anything-v0"))


@pytest.mark.parametrize(
    ("space", "dtype", "number"),
    [
        ("UnitPicture", np.float32, 200.0),
        ("BitPicture", np.uint8, 2.0),
        ("Bytes", np.uint16, 300.0),  # which as a byte is 44
    ],
)
def test_an_environment_that_shows_more_than_its_space_has_fails(
    space: str, dtype: type, number: float
) -> None:
    env = odd_environments.Odd(odd_environments.SPACES[space])
    env.seen = lambda: np.full(env.observation_space.shape or (), number, dtype)  # type: ignore[method-assign]
    odd_environments.gymnasium.register("TooBright-v0", lambda **_: env)
    try:
        environments = make_environments(EnvConfig(id="TooBright-v0"), 1, 0, True)
        with pytest.raises(
            EnvironmentFailed, match=f"holds {number}: must be within the bounds of its"
        ):
            environments.reset()
    finally:
        del odd_environments.gymnasium.registry["TooBright-v0"]


def test_odd_but_sound_environments_are_played() -> None:
    for name in ("Number", "Endless", "Plain", "Sevens", "Large", "ColourPicture"):
        environments = make_environments(env_of(name), 2, 0, True)
        environments.reset()
        played = [environments.step(np.zeros(2, np.int64)) for _ in range(12)]
        assert sum(int(timesteps.game_over.sum()) for timesteps in played) == 2
        environments.close()


def test_an_environment_without_pictures_cannot_be_filmed_and_says_so() -> None:
    with pytest.raises(EnvironmentFailed, match="in make, raised TypeError: .*'render_mode'"):
        expect_pictures(env_of("Plain"), 0)
    expect_pictures(env_of("BlackScreen"), 0)
    expect_pictures(EnvConfig(id="CartPole-v1"), 0)
    expect_pictures(EnvConfig(id="pong"), 0)


# --- Atari ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rom", "actions"), [("skiing", 9), ("lost_luggage", 9), ("pong", 18)])
def test_the_full_set_of_actions_is_what_the_emulator_takes(rom: str, actions: int) -> None:
    env = EnvConfig(id=rom, full_action_space=True)
    environments = make_environments(env, 1, 0, True)
    assert environments.spec.num_actions == actions
    assert f"the full set of {actions} actions" in environments.spec.protocol
    environments.reset()
    for action in range(actions):
        environments.step(np.array([action]))
    with pytest.raises(ValueError, match=f"Expect `actions` from 0 to {actions - 1}, actually: "):
        environments.step(np.array([actions]))
    environments.close()


# --- runs -----------------------------------------------------------------------------------------

FLAGS = (
    *("--preset", "cartpole", "--total-frames", "4000", "--evaluator.no-enabled"),
    *("--replay.min-size", "200"),
)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs a command in this process, where that shows the same."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("RaisesInReset", "in reset, raised RuntimeError: two words in two lines"),
        ("ExitsInStep", f"in step {BAD_STEP}, raised SystemExit: 3"),
        ("InterruptsInStep", f"in step {BAD_STEP}, raised KeyboardInterrupt"),
        ("HugeReward", f"in step {BAD_STEP}, gave the reward 3e+38: must be finite"),
    ],
)
def test_the_first_failure_of_an_environment_ends_a_serial_start_in_one_line(
    tmp_path: Path, command: Command, name: str, line: str
) -> None:
    run = tmp_path / "run"
    env = env_of(name).id
    arguments = (*FLAGS, "--serial", "--env", env, "--run-dir", str(run))
    if name == "InterruptsInStep":
        done = launch(*arguments, environment=ON_THE_PATH)
    else:
        done = command(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"launch.py: the environment {env}, {line}")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout
    log = (run / "log.txt").read_text()
    assert ("Traceback" in log) == ("raised" in line)
    assert ("odd_environments.py" in log) == ("raised" in line)
    assert line in result_of(run)["end_reason"]


def test_an_environment_that_fails_later_ends_a_serial_run_that_keeps_what_it_learned(
    tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    env = env_of("RaisesLater").id
    flags = ("--serial", "--env", env, "--total-frames", "20000", "--run-dir", str(run))
    done = command(*FLAGS, *flags)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith(f"launch.py: the environment {env}, in reset, raised Runtime")
    result = result_of(run)
    assert result["learner_steps"] > 0
    assert list((run / "checkpoints").glob(f"checkpoint_*{result['learner_steps']}.pt"))
    assert f"--resume {run}" in done.stdout


def test_an_environment_that_cannot_be_made_is_one_line_and_exit_2(
    tmp_path: Path, command: Command
) -> None:
    run, env = tmp_path / "run", env_of("RaisesInMake").id
    for _ in range(2):  # a folder with nothing but a log in it is as good as new
        done = command(*FLAGS, "--env", env, "--run-dir", str(run))
        assert done.returncode == 2
        assert done.stderr == (
            f"launch.py: --env.id {env}: the environment {env}, in make, raised RuntimeError: two"
            f" words in two lines; its traceback is in {run / 'log.txt'}\n"
        )
    assert "Traceback" in (run / "log.txt").read_text()


def test_a_run_whose_checkpoint_knows_no_scale_goes_on_as_it_began(
    tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    new = ("--serial", "--env", env_of("Bits").id, "--run-dir", str(run))
    done = command(*FLAGS, *new)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Observations are read as they are; rewards are learned as they are" in done.stdout
    (path,) = (run / "checkpoints").glob("checkpoint_*.pt")
    payload = load(path)
    del payload["spec"]["scale"]
    save(path, payload)
    known = ("--env", "odd_environments:Bits-v0")
    more = ("--resume", str(run), "--serial", "--total-frames", "5000", *known)
    done = command(*more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Observations are divided by 255; rewards are learned as they are" in done.stdout
    assert "observations are read as since this run began" in done.stdout
    newest = CheckpointFolder(run / "checkpoints", 1).newest()
    assert newest is not None
    assert load(newest)["spec"]["scale"] == 1 / 255


@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("RaisesInStep", f"in step {BAD_STEP}, raised RuntimeError: two words in two lines"),
        ("OnlyInTheDriver", "in make, raised OSError: no such display"),
    ],
)
def test_the_first_failure_of_an_environment_ends_a_run_through_ray_at_once(
    tmp_path: Path, name: str, line: str
) -> None:
    run = tmp_path / "run"
    env = env_of(name).id
    done = launch(*FLAGS, "--env", env, "--run-dir", str(run), environment=ON_THE_PATH)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr == (
        f"launch.py: the environment {env}, {line}; its traceback is in {run / 'log.txt'}\n"
    )
    assert "starting it again" not in done.stdout
    assert "Traceback" not in done.stdout
    assert "Traceback" in (run / "log.txt").read_text()


@pytest.mark.ray
def test_later_failures_restart_the_actor_and_say_the_environments_words(tmp_path: Path) -> None:
    run = tmp_path / "run"
    env = env_of("RaisesLater").id
    flags = ("--env", env, "--total-frames", "9000", "--run-dir", str(run))
    done = launch(*FLAGS, *flags, environment=ON_THE_PATH)
    assert done.returncode == 0, done.stdout + done.stderr
    died = "actor 0 died, starting it again at once: "
    assert f"{died}the environment {env}, in reset, raised RuntimeError: two words" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in (run / "log.txt").read_text()


@pytest.mark.ray
def test_a_step_that_never_ends_is_told_by_the_name_of_the_setting(tmp_path: Path) -> None:
    run = tmp_path / "run"
    env = env_of("SlowStep").id
    flags = ("--env", env, "--health.hang-s", "14", "--run-dir", str(run))
    done = launch(*FLAGS, *flags, environment=ON_THE_PATH)
    assert done.returncode == 2, done.stdout + done.stderr
    where = rf"silent for \d+ s in the environment's step {BAD_STEP}"
    allowed = r"\(--health.hang-s 14 allows 14 s\)"
    assert re.search(rf"actor 0 takes long: {where} {allowed}", done.stdout)
    assert re.fullmatch(rf"launch.py: actor 0: it hung: {where} {allowed}\n", done.stderr)


@pytest.mark.ray
@pytest.mark.slow
def test_a_reset_that_takes_too_long_later_restarts_the_actor_and_names_the_setting(
    tmp_path: Path,
) -> None:
    env, run = env_of("SlowReset").id, tmp_path / "run"
    flags = ("--env", env, "--health.hang-s", "14", "--total-frames", "9000", "--run-dir", str(run))
    done = launch(*FLAGS, *flags, environment=ON_THE_PATH)
    assert done.returncode == 0, done.stdout + done.stderr
    where = r"silent for \d+ s in the environment's reset \(--health.hang-s 14 allows 14 s\)"
    assert re.search(rf"actor 0 takes long: {where}", done.stdout)
    assert re.search(rf"actor 0 died, starting it again at once: it hung: {where}", done.stdout)


def test_an_environment_that_is_another_where_it_is_played_or_lacks_a_package_fails() -> None:
    plain = resolve(env_of("Plain"))
    for name, line in (
        ("Bits", r"Bits-v0 is another here than in the driver: .*\(4,\).*, not .*\(3,\)"),
        ("NeedsAPackage", "NeedsAPackage-v0 cannot be made here: .* no box2d, run `pip install"),
    ):
        with pytest.raises(EnvironmentFailed, match=line):
            make_run_environments(env_of(name), plain, 1, 0, training=True, heartbeat=None)
    make_run_environments(env_of("Plain"), plain, 1, 0, training=True, heartbeat=None).close()
