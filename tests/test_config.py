"""Config: every impossible value is named, all at once, and YAML gives back what it was given."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.config import Config
from common.config_file import (
    ConfigError,
    load_file,
    overlay,
    override,
    read_file,
    save_file,
    to_dict,
)
from common.schema import Bounds, shown


def with_values(**values: Any) -> Config:
    """Return the default configuration with `part__field=value` applied, kinds unchecked."""
    config = Config()
    for name, value in values.items():
        part, _, field = name.rpartition("__")
        if part:
            changed = dataclasses.replace(getattr(config, part), **{field: value})
            config = dataclasses.replace(config, **{part: changed})
        else:
            config = dataclasses.replace(config, **{field: value})
    return config


# One of each kind; what lies outside of every setting's bounds is tried further below.
IMPOSSIBLE = [
    ("total_frames", 0, ">= 1"),
    ("env__stack", 256, "<= 255"),
    ("actor__count", 10**9, "<= 100,000"),
    ("replay__shards", 129, "<= 128"),
    ("learner__threads", -1, ">= 0"),
    ("seed", 10**4_000, "<= 9,223,372,036,854,775,807"),
    ("replay__max_bytes", 0, "finite and > 0"),
    *[("learner__learning_rate", v, "finite and > 0") for v in (0.0, -1.0, math.inf, math.nan)],
    *[("actor__epsilon_alpha", v, "finite and >= 0") for v in (-0.1, math.inf, math.nan)],
    *[("agent__gamma", v, "from 0 to 1") for v in (-0.01, 1.01, math.nan)],
    *[("stop_at_return", v, "finite") for v in (math.inf, -math.inf, math.nan)],
    *[
        ("stop_at_return_of", of, "either, where no --stop-at-return is given")
        for of in ("train", "eval")
    ],
    *[("env__life_loss_reward", v, "finite and <= 0") for v in (0.5, -math.inf, math.nan)],
    ("agent__hidden", (), "one or more widths >= 1"),
    ("agent__hidden", (64, 0), "one or more widths >= 1"),
]


def numbers() -> dict[str, Bounds | None]:
    """Return the bounds that stand beside each setting that holds a number, by its name."""
    found: dict[str, Bounds | None] = {}
    parts = {field.name: getattr(Config(), field.name) for field in dataclasses.fields(Config)}
    for prefix, part in [("", Config()), *((f"{name}__", part) for name, part in parts.items())]:
        if not dataclasses.is_dataclass(part):
            continue
        for name, hint in typing.get_type_hints(type(part), include_extras=True).items():
            if re.search(r"\b(int|float)\b", str(hint)):
                bounds = [one for one in hint.__metadata__ if isinstance(one, Bounds)]
                found[prefix + name] = bounds[0] if bounds else None
    return found


def flag_of(name: str) -> str:
    return "--" + name.replace("__", ".").replace("_", "-")


@pytest.mark.parametrize(("name", "value", "rule"), IMPOSSIBLE)
def test_impossible_value_is_one_line_with_flag_value_and_rule(
    name: str, value: Any, rule: str
) -> None:
    problems = with_values(**{name: value}).problems()
    assert problems == [f"{flag_of(name)} {shown(value)}: must be {rule}"]


def test_number_of_thousands_of_digits_is_told_in_a_few_words() -> None:
    (problem,) = with_values(seed=10**6_000).problems()
    assert problem.startswith("--seed a whole number of about 6,000 digits: must be <= 9,223,")


@pytest.mark.parametrize("name", numbers())
def test_every_number_has_bounds_and_is_refused_outside_of_them(name: str) -> None:
    bounds = numbers()[name]
    assert bounds is not None, f"{name} may be anything"
    value = functools.reduce(getattr, name.split("__"), Config())
    for outside in (bounds.least - 1 - abs(bounds.least), bounds.most * 2 + 1, math.nan):
        changed = (outside,) if isinstance(value, tuple) else outside
        (problem,) = with_values(**{name: changed}).problems()
        assert problem.startswith(f"{flag_of(name)} ")


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        (
            {"learner__batch_size": 60_000},
            ["--replay.min-size 50000: must be >= the batch size, 60000"],
        ),
        ({"replay__min_size": 511}, ["--replay.min-size 511: must be >= the batch size, 512"]),
        (
            {"replay__capacity": 49_999},
            ["--replay.min-size 50000: must be <= the capacity, 49999"],
        ),
        (
            {"replay__capacity": 50_000, "replay__shards": 126},
            [
                "--replay.capacity 50000: must be >= 50400, one push (400 transitions) for each "
                "shard (126)"
            ],
        ),
        (
            {
                "stop_at_return": 18.0,
                "stop_at_return_of": "eval",
                "evaluator__enabled": False,
            },
            [
                "--stop-at-return-of eval: must be train, where --evaluator.no-enabled leaves no "
                "evaluations"
            ],
        ),
        # 2 * max(512, 8 * 8 * 50)
        (
            {"replay__band": 6_399.0},
            [
                "--replay.band 6399.0: must be >= 6400: 2 * max(batch, samples per insert * "
                "transitions per push)"
            ],
        ),
        # 2 * max(4000, 8 * 8 * 50)
        (
            {"replay__band": 7_999.0, "learner__batch_size": 4_000},
            [
                "--replay.band 7999.0: must be >= 8000: 2 * max(batch, samples per insert * "
                "transitions per push)"
            ],
        ),
        (
            {"replay__order": "sequential"},
            [
                "--replay.order sequential: must be random while --replay.priority-exponent is "
                "above 0"
            ],
        ),
    ],
)
def test_values_that_do_not_go_together_are_named(
    values: dict[str, Any], problems: list[str]
) -> None:
    assert with_values(**values).problems() == problems


@pytest.mark.parametrize(
    "values",
    [
        {"replay__min_size": 512},
        {"replay__capacity": 50_000},
        {"replay__capacity": 50_000, "replay__shards": 125},
        {"replay__band": 6_400.0},
        {"replay__band": 1.0, "replay__samples_per_insert": "off"},
        {"replay__samples_per_insert": "off"},
        {"learner__max_grad_norm": None},
        {"env__sticky_actions": 0.0},
        {"env__noop_max": 0},
        {"env__stack": 255},
        {"agent__gamma": 1.0},
        {"actor__cpus": 0.1},
        {"replay__priority_exponent": 0.0},
        {"evaluator__epsilon": 0.0},
        {"replay__order": "sequential", "replay__priority_exponent": 0.0},
        {"env__life_loss_reward": -1.0},
        {"seed": 0},
        {"stop_at_return": -21.0},
        {"stop_at_return": 0.0, "stop_at_return_of": "eval"},
        {"stop_at_return": 18.0, "evaluator__enabled": False},
        {name: 1 for name, bounds in numbers().items() if bounds and bounds.least == 1},
    ],
)
def test_value_at_the_edge_of_what_is_possible_is_allowed(values: dict[str, Any]) -> None:
    assert with_values(**values).problems() == []


def test_all_problems_are_named_in_one_go() -> None:
    problems = with_values(
        actor__count=0,
        agent__n_step=0,
        agent__gamma=2.0,
        learner__batch_size=60_000,
        learner__learning_rate=-1.0,
        replay__shards=0,
    ).problems()
    assert sorted(problem.split()[0] for problem in problems) == [
        "--actor.count",
        "--agent.gamma",
        "--agent.n-step",
        "--learner.learning-rate",
        "--replay.min-size",
        "--replay.shards",
    ]


def test_one_bad_value_makes_no_further_lines_about_what_it_is_compared_with() -> None:
    assert with_values(replay__capacity=-1).problems() == ["--replay.capacity -1: must be >= 1"]
    assert with_values(actor__envs=-9).problems() == ["--actor.envs -9: must be >= 1"]
    band = with_values(replay__band=5.0, replay__samples_per_insert=-8.0).problems()
    assert band == ["--replay.samples-per-insert -8.0: must be finite and > 0"]


def test_derived_numbers() -> None:
    config = with_values(actor__count=3, actor__envs=5, actor__segment_transitions=20)
    assert config.num_environments == 3 * 5
    assert config.transitions_per_push == 5 * 20
    assert config.samples_per_insert == 8.0
    assert config.least_band == 2 * max(512, 8 * 5 * 20)
    assert config.band == 4 * config.least_band
    assert with_values(replay__band=9_000.0).band == 9_000.0
    off = with_values(replay__samples_per_insert="off")
    assert off.samples_per_insert is None
    assert off.least_band == 2 * 512


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().learner.batch_size = 3  # type: ignore[misc]


# --- YAML --------------------------------------------------------------------------------------

FLOATS = st.floats(allow_nan=False)
INTEGERS = st.integers(-(2**63) + 1, 2**63 - 1)
CHANGES = {
    "preset": st.text(max_size=20),
    "total_frames": INTEGERS,
    "total_episodes": st.none() | INTEGERS,
    "stop_at_return": st.none() | FLOATS,
    "env__id": st.text(max_size=20) | st.sampled_from(["off", "null", "1e3", "~", "2020-01-01"]),
    "env__sticky_actions": st.none() | FLOATS,
    "env__full_action_space": st.booleans(),
    "agent__network": st.sampled_from(["nature_cnn", "nips_cnn", "pixel_cnn", "mlp"]),
    "agent__hidden": st.lists(INTEGERS).map(tuple),
    "actor__cpus": st.just("auto") | FLOATS,
    "replay__samples_per_insert": st.just("off") | FLOATS,
    "replay__max_bytes": st.none() | INTEGERS,
    "learner__learning_rate": FLOATS,
    "learner__optimizer_epsilon": st.sampled_from([1e-5, 1e-16, 5e-324, 1e20, 1e300, 0.1 + 0.2]),
    "learner__compile": st.sampled_from(["auto", "on", "off"]),
    "learner__precision": st.sampled_from(["float32", "bfloat16"]),
}


@settings(deadline=None)  # files, on disks that others use, too
@given(values=st.fixed_dictionaries({}, optional=CHANGES))
@example(values={"preset": "0E0"})
def test_yaml_round_trip_is_exact(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = with_values(**values)
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    save_file(config, path)
    for base in (Config(), with_values(seed=99, agent__hidden=(1,), learner__compile="on")):
        loaded = load_file(base, path)
        assert loaded == config
        assert repr(loaded) == repr(config)  # 1 and 1.0 and True are equal, but not the same


def test_saved_file_holds_every_field_readably(tmp_path: Path) -> None:
    save_file(Config(), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load(text) == to_dict(Config())
    assert list(to_dict(Config())) == [field.name for field in dataclasses.fields(Config)]
    assert "\n  batch_size: 512\n" in text
    assert "!!" not in text


def load_text(tmp_path: Path, text: str, base: Config | None = None) -> Config:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_file(Config() if base is None else base, path)


def problems_of(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    assert str(caught.value) == "\n".join(caught.value.problems)
    folder = f"{tmp_path}/"
    assert all(problem.startswith(folder) for problem in caught.value.problems)
    return [problem.removeprefix(folder) for problem in caught.value.problems]


def test_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    base = with_values(seed=7, learner__batch_size=64)
    text = (
        "total_frames: 1_000\nlearner:\n  learning_rate: 1e-4\nreplay: {samples_per_insert: off}\n"
    )
    loaded = load_text(tmp_path, text, base)
    assert loaded == with_values(
        seed=7,
        learner__batch_size=64,
        total_frames=1_000,
        learner__learning_rate=1e-4,
        replay__samples_per_insert="off",
    )


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n"])
def test_empty_file_changes_nothing(tmp_path: Path, text: str) -> None:
    assert load_text(tmp_path, text) == Config()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("learner: {learning_rate: 1e-4}", {"learner__learning_rate": 1e-4}),
        ("learner: {learning_rate: 1}", {"learner__learning_rate": 1.0}),
        ("learner: {compile: on}", {"learner__compile": "on"}),
        ("learner: {compile: off}", {"learner__compile": "off"}),
        ("learner: {rmsprop_centered: off}", {"learner__rmsprop_centered": False}),
        ("learner: {max_grad_norm: null}", {"learner__max_grad_norm": None}),
        ("replay: {samples_per_insert: 'off'}", {"replay__samples_per_insert": "off"}),
        ("replay: {samples_per_insert: 4}", {"replay__samples_per_insert": 4.0}),
        ("replay: {max_bytes: 1_000}", {"replay__max_bytes": 1_000}),
        ("agent: {hidden: [64, 32]}", {"agent__hidden": (64, 32)}),
        ("actor: {cpus: auto}", {"actor__cpus": "auto"}),
        ("actor: {cpus: 0.5}", {"actor__cpus": 0.5}),
    ],
)
def test_yaml_values_become_what_the_field_asks_for(
    tmp_path: Path, text: str, values: dict[str, Any]
) -> None:
    loaded = load_text(tmp_path, text)
    assert repr(loaded) == repr(with_values(**values))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("learner: {batch_size: many}", "`learner.batch_size` is 'many': must be a whole number"),
        ("learner: {batch_size: 1.5}", "`learner.batch_size` is 1.5: must be a whole number"),
        ("learner: {batch_size: true}", "`learner.batch_size` is True: must be a whole number"),
        ("learner: {batch_size: }", "`learner.batch_size` is None: must be a whole number"),
        ("agent: {gamma: high}", "`agent.gamma` is 'high': must be a number"),
        ("agent: {gamma: true}", "`agent.gamma` is True: must be a number"),
        ("agent: {double: 1}", "`agent.double` is 1: must be true or false"),
        ("agent: {hidden: 64}", "`agent.hidden` is 64: must be a list, each a whole number"),
        (
            "agent: {hidden: [6, x]}",
            "`agent.hidden[1]` is 'x': must be a whole number",
        ),
        ("env: {id: 5}", "`env.id` is 5: must be text"),
        ("learner: {loss: l1}", "`learner.loss` is 'l1': must be huber or mse"),
        ("learner: {loss: [huber]}", "`learner.loss` is ['huber']: must be huber or mse"),
        ("learner: {compile: no way}", "`learner.compile` is 'no way': must be auto or on or off"),
        ("replay: {band: wide}", "`replay.band` is 'wide': must be a number or null"),
        (
            "replay: {samples_per_insert: on}",
            "`replay.samples_per_insert` is True: must be a number or off",
        ),
        ("actor: {cpus: all}", "`actor.cpus` is 'all': must be a number or auto"),
        ("learner: 3", "`learner` is 3: must hold `key: value` lines"),
        ("learner:", "`learner` is None: must hold `key: value` lines"),
        ("- 1", "the file is [1]: must hold `key: value` lines"),
        (
            "lerner: {}",
            "unknown key `lerner`: must be one of preset, total_frames, total_episodes, "
            "stop_at_return, stop_at_return_of, seed, env, agent, actor, replay, learner, "
            "evaluator, checkpoint, health, log",
        ),
        (
            "checkpoint: {kep: 3}",
            "unknown key `checkpoint.kep`: must be one of every_minutes, keep, replay",
        ),
        (
            "checkpoint: {3: 3}",
            "unknown key `checkpoint.3`: must be one of every_minutes, keep, replay",
        ),
    ],
)
def test_misfit_in_a_file_is_one_line_with_file_key_value_and_rule(
    tmp_path: Path, text: str, problem: str
) -> None:
    assert problems_of(tmp_path, text) == [f"mine.yaml: {problem}"]


def test_number_too_large_for_a_float_is_a_misfit(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, f"agent: {{gamma: {10**400}}}")
    assert problem.endswith("must be a number")


def test_all_misfits_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    text = "sed: 1\nactor: {count: x, envs: 4, hats: 2}\nagent: 7\nseed: 1.5\n"
    assert [line.split("`")[1] for line in problems_of(tmp_path, text)] == [
        "sed",
        "actor.count",
        "actor.hats",
        "agent",
        "seed",
    ]


@pytest.mark.parametrize(
    "content", [b"a: [", b"a: \xff", b"a: 2021-06-31", b"a: !!python/object:os.system {}", b"\t"]
)
def test_file_that_is_no_yaml_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_file(Config(), path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_file_that_cannot_be_opened_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*: cannot be read: [^\n]*$"):
        read_file(tmp_path / name)


def test_overlay_keeps_what_fits_beside_what_does_not() -> None:
    changes = {"seed": 5, "learner": {"batch_size": "x", "threads": 2}}
    config, problems = overlay(Config(), changes, "here")
    assert config == with_values(seed=5, learner__threads=2)
    assert problems == ["here: `learner.batch_size` is 'x': must be a whole number"]
    with pytest.raises(ConfigError, match=r"^here: `learner\.batch_size` is 'x'"):
        override(Config(), changes, "here")
