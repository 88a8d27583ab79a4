"""hparams_summary: TensorBoard's own HPARAMS backend compares runs by it, one folder per run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from fakes import made
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from common.config import Config
from common.presets import PRESETS
from driver.view.events import EventWriter, event_files, read_scalars
from driver.view.hparams import hparams_summary
from launch import main


def write_run(folder: Path, config: Config, scores: list[float]) -> None:
    with EventWriter(folder=made(folder), flush_s=10.0, first_frames=0) as writer:
        writer.summary(hparams_summary(config, folder.name), 0)
        for i, score in enumerate(scores):
            writer.scalars({"eval/episode_return": score}, 1000 * i)


def backend(logdir: Path) -> Context:
    """Return what answers the HPARAMS tab of `tensorboard --logdir`."""
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logdir))
    return Context(TBContext(data_provider=provider, logdir=str(logdir)))


def infos(context: Context) -> dict[str, api_pb2.HParamInfo]:
    request = RequestContext()
    tags = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(request, "", True, tags, [])
    return {info.name: info for info in experiment.hparam_infos}


def session_groups(context: Context, columns: list[str]) -> list[api_pb2.SessionGroup]:
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING],
        include_metrics=True,
        col_params=[api_pb2.ColParams(hparam=name) for name in columns],
    )
    answer = list_session_groups.Handler(RequestContext(), context, "", request).run()
    return list(answer.session_groups)


def test_tensorboard_compares_runs_by_settings_and_last_scores_without_further_folders(
    tmp_path: Path,
) -> None:
    apex, nature = PRESETS["apex"].config, PRESETS["nature"].config
    write_run(tmp_path / "one", apex, [1.0, 2.0])
    write_run(tmp_path / "two", nature, [3.0])
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["one", "two"]
    assert len(event_files(tmp_path / "one")) == 1

    context = backend(tmp_path)
    groups = {group.name: group for group in session_groups(context, ["learner.batch_size"])}
    assert set(groups) == {"one", "two"}
    assert groups["one"].hparams["learner.batch_size"].number_value == 512
    assert groups["two"].hparams["learner.batch_size"].number_value == 32
    last = {
        name: [m.value for m in group.metric_values if m.name.tag == "eval/episode_return"]
        for name, group in groups.items()
    }
    assert last == {"one": [2.0], "two": [3.0]}


def test_tensorboard_knows_by_which_settings_runs_differ(tmp_path: Path) -> None:
    config = Config()
    learner = dataclasses.replace(config.learner, learning_rate=1e-3, max_grad_norm=None)
    write_run(tmp_path / "one", config, [1.0])
    write_run(tmp_path / "two", dataclasses.replace(config, learner=learner), [1.0])
    found = infos(backend(tmp_path))
    assert [name for name, info in found.items() if info.differs] == ["learner.learning_rate"]
    assert found["learner.learning_rate"].type == api_pb2.DATA_TYPE_FLOAT64
    assert found["agent.double"].type == api_pb2.DATA_TYPE_BOOL
    assert found["agent.hidden"].domain_discrete.values[0].string_value == "256 256"
    assert found["learner.max_grad_norm"].domain_interval.max_value == 40.0


def test_settings_are_no_scalars_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Config(), [])
    assert read_scalars(tmp_path / "run") == {}
    assert "replay.max_bytes" not in infos(backend(tmp_path))


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_a_run_writes_its_settings_into_its_own_events(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ("--total-frames", "1100", "--evaluator.no-enabled", "--seed", "7")
    flags = ["--preset", "cartpole", "--serial", *small, "--run-dir", str(run)]
    assert main(flags) == 0
    assert len(event_files(run)) == 1
    assert event_files(tmp_path) == [], "no folder but the run's"
    (group,) = session_groups(backend(tmp_path), ["seed", "env.id"])
    assert group.name == "run"
    assert group.hparams["seed"].number_value == 7
    assert group.hparams["env.id"].string_value == "CartPole-v1"


def test_a_resumed_run_is_still_one_row(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Config(), [1.0])
    with EventWriter(folder=made(tmp_path / "run"), flush_s=10.0, first_frames=5000) as writer:
        writer.summary(hparams_summary(Config(), "run"), 5000)
        writer.scalars({"eval/episode_return": 7.0}, 6000)
    (group,) = session_groups(backend(tmp_path), ["seed"])
    assert [m.value for m in group.metric_values if m.name.tag == "eval/episode_return"] == [7.0]
