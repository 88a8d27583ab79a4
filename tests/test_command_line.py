"""The command line: every flag works, and each thing that cannot be gets one clear line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import begin_run

from common.config import Config
from common.config_file import save_file, to_dict
from common.presets import PRESETS
from driver.command_line import (
    TrainCommand,
    parse_bench,
    parse_eval,
    parse_plot,
    read_train,
)
from driver.refusals import refuse
from driver.run_folder import RunFolder


def parse_train(arguments: Sequence[str]) -> TrainCommand:
    """Read the command as `launch.py` does and refuse what it cannot run."""
    command, problems = read_train(arguments)
    if problems:
        refuse(problems)
    return command


def value_of(command: TrainCommand, name: str) -> Any:
    """Return a value by its dotted name, of the settings or else of the command."""
    if hasattr(command, name):
        return getattr(command, name)
    found: Any = command.settings
    for part in name.split("."):
        found = getattr(found, part)
    return found


def changed(before: Config, after: Config) -> dict[str, Any]:
    """Return the settings that differ, by dotted name."""
    differences = {}
    for name, value in flat(to_dict(before)).items():
        now = flat(to_dict(after))[name]
        if now != value:
            differences[name] = now
    return differences


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """A function that parses what must be refused and returns the lines of the refusal."""

    def parse(*arguments: str, by: Callable[[list[str]], object] = parse_train) -> list[str]:
        with pytest.raises(SystemExit) as caught:
            by(list(arguments))
        assert caught.value.code == 2
        output, errors = capsys.readouterr()
        assert output == ""
        assert "Traceback" not in errors
        return errors.splitlines()

    return parse


@pytest.fixture
def ours(refused: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """As `refused`, for our own checks: each line begins alike."""

    def parse(*arguments: str, by: Callable[[list[str]], object] = parse_train) -> list[str]:
        lines = refused(*arguments, by=by)
        assert all(line.startswith("launch.py: ") for line in lines), lines
        return [line.removeprefix("launch.py: ") for line in lines]

    return parse


# --- flags that work ---------------------------------------------------------------------------


def test_no_arguments_train_with_apex() -> None:
    assert parse_train([]) == TrainCommand(settings=PRESETS["apex"].config)


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--actors 4", "actor.count", 4),
        ("--actors=4", "actor.count", 4),
        ("--envs-per-actor 2", "actor.envs", 2),
        ("--env ALE/Pong-v5", "env.id", "ALE/Pong-v5"),
        ("--total-frames 10_000_000", "total_frames", 10_000_000),
        ("--stop-at-return -5.5", "stop_at_return", -5.5),
        ("--seed 7", "seed", 7),
        ("--device cpu", "learner.device", "cpu"),
        ("--learner.batch_size 256", "learner.batch_size", 256),
        ("--learner.max-grad-norm None", "learner.max_grad_norm", None),
        ("--learner.no-rmsprop-centered", "learner.rmsprop_centered", False),
        ("--learner.compile off", "learner.compile", "off"),
        ("--replay.samples-per-insert off", "replay.samples_per_insert", "off"),
        ("--replay.samples-per-insert 4", "replay.samples_per_insert", 4.0),
        ("--env.no-clip-rewards", "env.clip_rewards", False),
        ("--env.clip-rewards", "env.clip_rewards", True),
        ("--env.no_clip_rewards --serial", "env.clip_rewards", False),
        ("--env.clip-rewards=false", "env.clip_rewards", False),
        ("--env.clip_rewards true --seed 3", "env.clip_rewards", True),
        ("--env.clip-rewards --env.clip-rewards None", "env.clip_rewards", None),
        ("--agent.hidden 64 32", "agent.hidden", (64, 32)),
        ("--env.life-loss-reward -1", "env.life_loss_reward", -1.0),
        ("--actor.cpus auto", "actor.cpus", "auto"),
        ("--actor.cpus 0.5", "actor.cpus", 0.5),
        ("--evaluator.no-enabled", "evaluator.enabled", False),
        ("--checkpoint.replay false", "checkpoint.replay", False),
        ("--checkpoint.replay=False", "checkpoint.replay", False),
        ("--checkpoint.no-replay --checkpoint.replay true", "checkpoint.replay", True),
        ("--env.fire_reset True", "env.fire_reset", True),
        ("--env.full-action-space=true", "env.full_action_space", True),
        ("--preset nature", "preset", "nature"),
        ("--run-dir runs/mine", "run_dir", Path("runs/mine")),
        ("--serial", "serial", True),
        ("--address auto", "address", "auto"),
        ("--dashboard", "dashboard", True),
    ],
)
def test_flag_sets_its_value(arguments: str, name: str, value: Any) -> None:
    found = value_of(parse_train(arguments.split()), name)
    assert found == value
    assert type(found) is type(value)


def test_goal_of_a_run_takes_its_kind() -> None:
    settings = parse_train(["--stop-at-return", "18", "--stop-at-return-of", "train"]).settings
    assert (settings.stop_at_return, settings.stop_at_return_of) == (18.0, "train")


def test_flags_work_together_and_change_nothing_else() -> None:
    line = "--serial --actors=2 --env breakout --seed 3 --run-dir x --learner.batch-size 64"
    command = parse_train(line.split())
    assert (command.serial, command.run_dir) == (True, Path("x"))
    assert (command.config, command.resume, command.address) == (None, None, None)
    assert changed(Config(), command.settings) == {
        "actor.count": 2,
        "env.id": "breakout",
        "seed": 3,
        "learner.batch_size": 64,
    }


def words_for(name: str, value: Any) -> list[str]:
    """Return the flag of a setting, and a value for it."""
    flag = f"--{name}".replace("_", "-")
    if isinstance(value, bool):
        part, _, last = flag.rpartition(".")
        return [flag if value else f"{part}.no-{last}"]
    return [flag, *(str(item) for item in (value if isinstance(value, list) else [value]))]


def test_every_setting_has_a_flag() -> None:
    wanted = flat(to_dict(PRESETS["cartpole"].config))
    del wanted["preset"]
    words = [word for setting in wanted.items() for word in words_for(*setting)]
    assert flat(to_dict(read_train(words)[0].settings)) == wanted | {"preset": "apex"}


def test_flags_of_every_setting_and_the_aliases_are_in_the_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_train(["--help"])
    assert caught.value.code == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    for name in flat(to_dict(Config())):
        assert f"--{name}".replace("_", "-") in words
    aliases = "--actors --preset --env --envs-per-actor --total-frames --run-dir --seed --device"
    for flag in f"{aliases} --config --serial --address --resume".split():
        assert flag in words


# --- preset < file < flag ----------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_preset_sets_everything(name: str) -> None:
    assert parse_train(["--preset", name]).settings == PRESETS[name].config


@pytest.mark.parametrize("line", ["--preset nature {}", "{} --preset=nature"])
def test_flag_wins_over_preset_wherever_it_stands(line: str) -> None:
    command = parse_train(line.format("--learner.batch-size 64").split())
    assert changed(PRESETS["nature"].config, command.settings) == {"learner.batch_size": 64}


def test_last_of_two_presets_counts() -> None:
    command = parse_train(["--preset", "nature", "--preset", "machado"])
    assert command.settings == PRESETS["machado"].config


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """A function that writes a settings file and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_file_wins_over_preset_and_flag_over_file(file: Callable[[str], str]) -> None:
    path = file("learner: {batch_size: 100, threads: 3}\nseed: 5\n")
    command = parse_train(["--seed", "6", "--preset", "nature", "--config", path])
    assert command.config == Path(path)
    assert changed(PRESETS["nature"].config, command.settings) == {
        "learner.batch_size": 100,
        "learner.threads": 3,
        "seed": 6,
    }


def test_preset_named_in_the_file_is_what_the_file_is_laid_over(
    file: Callable[[str], str],
) -> None:
    path = file("seed: 5\npreset: nature\n")
    assert changed(PRESETS["nature"].config, parse_train([f"--config={path}"]).settings) == {
        "seed": 5
    }
    command = parse_train(["--config", path, "--seed=6", "--agent.double"])
    assert changed(PRESETS["nature"].config, command.settings) == {"seed": 6, "agent.double": True}


def test_preset_flag_wins_over_the_preset_in_the_file(file: Callable[[str], str]) -> None:
    command = parse_train(["--config", file("seed: 5\npreset: nature\n"), "--preset", "machado"])
    assert changed(PRESETS["machado"].config, command.settings) == {"seed": 5}


def test_saved_settings_of_a_run_are_a_file_that_repeats_it(tmp_path: Path) -> None:
    config = parse_train(["--preset", "cartpole", "--seed", "3", "--actors", "2"]).settings
    save_file(config, tmp_path / "config.yaml")
    assert parse_train(["--config", str(tmp_path / "config.yaml")]).settings == config


def test_flag_that_mends_a_value_of_the_file_is_enough(file: Callable[[str], str]) -> None:
    path = file("actor: {count: 0}")
    assert parse_train(["--config", path, "--actors", "3"]).settings.actor.count == 3


# --- bad input ---------------------------------------------------------------------------------


def test_impossible_values_are_named_all_at_once(ours: Callable[..., list[str]]) -> None:
    arguments = "--actors 0 --agent.n-step 0 --replay.capacity=-1 --learner.batch-size 60_000"
    assert sorted(ours(*arguments.split())) == [
        "--actor.count 0: must be >= 1",
        "--agent.n-step 0: must be >= 1",
        "--replay.capacity -1: must be >= 1",
        "--replay.min-size 50000: must be >= the batch size, 60000",
    ]


def test_unknown_preset_is_named_with_all_presets_and_the_closest(
    ours: Callable[..., list[str]],
) -> None:
    names = ", ".join(PRESETS)
    assert ours("--preset", "natur") == [
        f"--preset natur: must be one of {names} (did you mean nature?)"
    ]
    assert ours("--preset=zzz") == [f"--preset zzz: must be one of {names}"]
    assert ours("--preset", "") == [f"--preset : must be one of {names}"]


def test_problems_of_preset_file_and_flags_are_named_all_at_once(
    ours: Callable[..., list[str]], file: Callable[[str], str]
) -> None:
    path = file("sed: 1\nactor: {envs: 0}\nlearner: {batch_size: x, threads: -1}\n")
    arguments = ["--config", path, "--preset", "natur", "--agent.gamma", "2"]
    assert sorted(ours(*arguments)) == sorted(
        [
            f"--preset natur: must be one of {', '.join(PRESETS)} (did you mean nature?)",
            f"{path}: unknown key `sed`: must be one of preset, total_frames, total_episodes, "
            "stop_at_return, stop_at_return_of, seed, env, agent, actor, replay, learner, "
            "evaluator, checkpoint, health, log",
            f"{path}: `learner.batch_size` is 'x': must be a whole number",
            f"{path}: `actor.envs` is 0: must be >= 1",
            f"{path}: `learner.threads` is -1: must be >= 0",
            "--agent.gamma 2.0: must be from 0 to 1",
        ]
    )


def test_value_of_the_file_that_clashes_with_the_presets_is_laid_to_the_file(
    ours: Callable[..., list[str]], file: Callable[[str], str]
) -> None:
    path = file("learner: {batch_size: 60_000}")
    rule = "must be >= the batch size, 60000"
    assert ours("--config", path) == [f"{path}: --replay.min-size 50000: {rule}"]
    # The flag's own clash is the flag's.
    assert ours("--config", path, "--replay.min-size", "70") == [f"--replay.min-size 70: {rule}"]


def test_unknown_preset_in_the_file_is_named_with_the_file(
    ours: Callable[..., list[str]], file: Callable[[str], str]
) -> None:
    path = file("preset: apxe\nseed: -1\n")
    assert ours("--config", path) == [
        f"{path}: `preset` is apxe: must be one of {', '.join(PRESETS)} (did you mean apex?)",
        f"{path}: `seed` is -1: must be >= 0",
    ]
    assert ours("--config", file("preset: 5")) == [f"{path}: `preset` is 5: must be text"]


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just text"])
def test_file_that_holds_no_settings_is_one_line(
    ours: Callable[..., list[str]], file: Callable[[str], str], text: str
) -> None:
    path = file(text)
    (line,) = ours("--config", path)
    assert line.startswith(f"{path}: ")


def test_missing_file_is_named_beside_the_other_problems(
    ours: Callable[..., list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "missing.yaml"
    unreadable, actors = ours("--config", str(path), "--actors", "0")
    assert unreadable.startswith(f"{path}: cannot be read: No such file or directory")
    assert actors == "--actor.count 0: must be >= 1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--no-such-flag 3", "--no-such-flag"),
        ("--learner.batchsize 3", "--learner.batchsize"),
        ("--act 3", "--act"),
        ("extra", "extra"),
        ("--actors many", "--actors"),
        ("--actors 1.5", "--actors"),
        ("--actors", "--actors"),
        ("--device tpu", "tpu"),
        ("--serial yes", "yes"),
        ("--preset", "--preset"),
        ("--preset --serial", "--preset"),
        ("--config", "--config"),
        ("--resume", "--resume"),
        ("--settings.seed 3", "--settings.seed"),
        ("--replay.samples-per-insert on", "--replay.samples-per-insert"),
    ],
)
def test_unknown_or_malformed_flag_is_named(
    refused: Callable[..., list[str]], arguments: str, said: str
) -> None:
    message = " ".join(refused(*arguments.split()))
    assert said in message
    assert "launch.py --help" in message


# --- resume ------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> str:
    """The folder of a CartPole run."""
    path = tmp_path / "run"
    config = dataclasses.replace(PRESETS["cartpole"].config, seed=77)
    begin_run(RunFolder(path), config, "cartpole", ["launch.py"])
    return str(path)


def test_resume_takes_the_runs_settings_and_flags_are_laid_over_them(run: str) -> None:
    command = parse_train(["--resume", run])
    assert command.resume == Path(run)
    saved = dataclasses.replace(PRESETS["cartpole"].config, seed=77)
    assert command.settings == saved
    more = parse_train([f"--resume={run}", "--total-frames", "99_999", "--actors", "3"]).settings
    assert changed(saved, more) == {"total_frames": 99_999, "actor.count": 3}


def test_resume_does_without_a_preset_that_was_renamed_since(run: str) -> None:
    path = Path(run) / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, "preset": "gone"}))
    command = parse_train(["--resume", run])
    assert (command.settings.preset, command.settings.seed) == ("gone", 77)


def test_resume_of_what_is_no_run_is_named_beside_the_other_problems(
    ours: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    assert ours("--resume", str(tmp_path), "--actors", "0") == [
        f"--resume {tmp_path}: is not a run folder (no run.json and config.yaml in it)",
        "--actor.count 0: must be >= 1",
    ]


def test_resume_refuses_another_game_or_network_all_at_once(
    ours: Callable[..., list[str]], run: str
) -> None:
    flags = (
        "--env pong --env.stack 2 --env.full-action-space --env.action-repeat-frames 3 "
        "--agent.network nature_cnn --agent.hidden 64 --agent.dueling --learner.optimizer rmsprop"
    )
    rule = "in a resumed run"
    assert ours("--resume", run, *flags.split()) == [
        f"--env.id pong: must stay CartPole-v1 {rule}",
        f"--env.full-action-space True: must stay False {rule}",
        f"--env.stack 2: must stay 4 {rule}",
        f"--env.action-repeat-frames 3: must stay 4 {rule}",
        f"--agent.network nature_cnn: must stay mlp {rule}",
        f"--agent.hidden (64,): must stay (128, 128) {rule}",
        f"--agent.dueling True: must stay False {rule}",
        f"--learner.optimizer rmsprop: must stay adam {rule}",
    ]


def test_resume_refuses_what_would_be_ignored(
    ours: Callable[..., list[str]], run: str, file: Callable[[str], str]
) -> None:
    path = file("seed: 3")
    arguments = ["--resume", run, "--preset", "apex", "--config", path, "--run-dir", "other"]
    assert ours(*arguments) == [
        "--preset apex: must not be given with --resume, nor needs to",
        f"--config {path}: must not be given with --resume; use flags",
        "--run-dir other: must not be given with --resume",
    ]


def test_settings_of_the_run_that_were_spoilt_are_laid_to_its_file(
    ours: Callable[..., list[str]], run: str
) -> None:
    path = Path(run) / "config.yaml"
    path.write_text(path.read_text().replace("seed: 77", "seed: -7"))
    assert ours("--resume", run) == [f"{path}: `seed` is -7: must be >= 0"]


# --- help --------------------------------------------------------------------------------------


def help_of(
    capsys: pytest.CaptureFixture[str], parse: Callable[[list[str]], object], *arguments: str
) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(["--help", *arguments])
    assert caught.value.code == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    return output


def plain(text: str) -> str:
    """Return a help text as one line without its frames."""
    return " ".join(text.replace("│", " ").split())


def test_help_teaches_by_example_and_names_the_other_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = help_of(capsys, parse_train)
    assert text.startswith("usage: launch.py ")
    said = plain(text)
    assert "A preset sets everything, a --config file is laid over it, and flags" in said
    assert "launch.py --resume runs/first" in said
    assert "eval RUN_DIR | plot RUN_DIR... | bench [STAGE] | presets" in said
    assert "--resume RUN_DIR Continue a run" in said
    assert "--serial Everything in one process" in said
    assert "{None}|PATH" not in said


def test_examples_of_the_help_work(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in help_of(capsys, parse_train).splitlines()]
    examples = [words[1:] for words in lines if words[:1] == ["launch.py"]]
    assert len(examples) == 3
    for arguments in examples:
        if "--resume" not in arguments:  # that run does not exist here
            parse_train(arguments)


def test_every_flag_of_the_help_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.strip("│ ") for line in help_of(capsys, parse_train).splitlines()]
    flags = [i for i, line in enumerate(lines) if re.match("--[a-z]", line)]
    assert len(flags) > 50
    for i in flags:
        explained = " ".join(lines[i + 1 : i + 4])
        assert len(explained.split("(default")[0]) > 10, lines[i]
        assert i + 1 not in flags, lines[i]


def test_help_shows_the_values_in_force(
    capsys: pytest.CaptureFixture[str], file: Callable[[str], str]
) -> None:
    batch = "Transitions per learner step. (default: {})"
    assert batch.format(512) in plain(help_of(capsys, parse_train))
    assert batch.format(32) in plain(help_of(capsys, parse_train, "--preset", "nature"))
    path = file("preset: nature\nlearner: {batch_size: 48}")
    assert batch.format(48) in plain(help_of(capsys, parse_train, "--config", path))


@pytest.mark.parametrize(
    ("parse", "usage"),
    [
        (parse_eval, "usage: launch.py eval [-h] [OPTIONS] RUN_DIR"),
        (parse_plot, "usage: launch.py plot [-h] [OPTIONS] RUN_DIR|FILE.json [...]"),
        (parse_bench, "usage: launch.py bench [-h] [{all,actor,replay,learner,pipeline,startup}]"),
    ],
)
def test_help_of_the_other_commands(
    capsys: pytest.CaptureFixture[str], parse: Callable[[list[str]], object], usage: str
) -> None:
    assert usage in plain(help_of(capsys, parse))


# --- the other commands ------------------------------------------------------------------------


def test_eval_takes_its_flags() -> None:
    command = parse_eval(["runs/a"])
    assert (command.run_dir, command.episodes, command.checkpoint) == (Path("runs/a"), 30, "last")
    assert (command.epsilon, command.video) == (None, False)
    line = "runs/a --episodes 5 --epsilon 0.05 --video --checkpoint best --seed 3"
    command = parse_eval(line.split())
    assert (command.episodes, command.epsilon, command.video) == (5, 0.05, True)
    assert (command.checkpoint, command.seed) == ("best", 3)


def test_eval_refuses_impossible_values_all_at_once(ours: Callable[..., list[str]]) -> None:
    line = "runs/a --episodes 0 --epsilon nan --seed=-1"
    assert ours(*line.split(), by=parse_eval) == [
        "--episodes 0: must be >= 1",
        "--epsilon nan: must be from 0 to 1",
        "--seed -1: must be from 0 to 2,000,000,000",
    ]


def test_eval_without_a_run_is_refused(refused: Callable[..., list[str]]) -> None:
    assert "RUN_DIR" in " ".join(refused(by=parse_eval))


def test_plot_takes_one_run_or_several(ours: Callable[..., list[str]]) -> None:
    command = parse_plot(["a", "b", "--out", "c"])
    assert (command.sources, command.out) == ((Path("a"), Path("b")), Path("c"))
    assert (command.x, command.average, command.save_scalars) == ("frames", 100, None)
    assert parse_plot(["a"]).out is None
    assert parse_plot(["a", "--x", "minutes"]).x == "minutes"
    assert parse_plot(["a", "--x", "games"]).x == "games"
    assert [parse_plot(["a", "--average", s]).average for s in ("20", "1", "0.9")] == [20, 1, 0.9]
    assert parse_plot(["a", "--save-scalars", "b.json"]).save_scalars == Path("b.json")
    assert ours(by=parse_plot) == ["plot RUN_DIR: must be one run folder or more"]
    assert ours("a", "b", "--save-scalars", "c.json", by=parse_plot) == [
        "--save-scalars c.json: must be given with one run alone"
    ]


@pytest.mark.parametrize("average", ["0", "-3", "1.5", "nan", "inf"])
def test_plot_refuses_an_average_that_is_none(ours: Callable[..., list[str]], average: str) -> None:
    assert ours("a", f"--average={average}", by=parse_plot) == [
        f"--average {average}: must be a whole number >= 1, or between 0 and 1"
    ]


def test_bench_takes_a_stage_and_a_file(refused: Callable[..., list[str]]) -> None:
    assert (parse_bench([]).stage, parse_bench([]).json) == ("all", None)
    command = parse_bench(["replay", "--json", "rows.json", "--seconds", "5"])
    assert (command.stage, command.json, command.seconds) == ("replay", Path("rows.json"), 5.0)
    assert "brew" in " ".join(refused("brew", by=parse_bench))


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_bench_refuses_an_impossible_time_box(ours: Callable[..., list[str]], seconds: str) -> None:
    (line,) = ours("--seconds", seconds, by=parse_bench)
    assert line == f"--seconds {float(seconds)}: must be finite and > 0"


def test_refusal_is_one_line_per_problem_and_exit_2(ours: Callable[..., list[str]]) -> None:
    assert ours("a", "b", by=refuse) == ["a", "b"]
