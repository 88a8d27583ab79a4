"""`launch.py eval`: whole games with a trained network, and their score."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from actors.environments import reading, resolve
from actors.evaluator import play
from actors.film import expect_pictures, record_game
from common.config import Config
from common.config_file import ConfigError, expect_no_module, in_file, load_file, to_dict
from common.endings import EnvironmentFailed
from common.machine import available_cores
from common.schema import one_line
from driver.command_line import EvalCommand
from driver.refusals import lines_of, refuse, words_of
from driver.run_folder import RunFolder
from driver.view.scores import human_normalized_score
from learner.checkpoint import CheckpointFolder
from learner.trained import Trained, expect_same_network, load_trained


def evaluate(command: EvalCommand) -> int:
    """Play whole games with a trained network and print the score."""
    try:
        folder = RunFolder.of_run(command.run_dir)
        path = CheckpointFolder(folder.checkpoints, 1).named(command.checkpoint)
        trained = load_trained(path)
        of_run = load_file(Config(), folder.config_file)
        settings_file = str(folder.config_file)
        for config, where in ((trained.config, str(path)), (of_run, settings_file)):
            expect_no_module(config, where, command.env)
        if problems := of_run.problems():
            saved = to_dict(of_run)
            raise ConfigError([in_file(problem, saved, settings_file) for problem in problems])
        expect_same_network(trained, path, of_run, resolve(of_run.env), folder.path)
    except ValueError as error:  # RunFolderError, CheckpointError, ConfigError; of `resolve`
        refuse(lines_of(error))
    except EnvironmentFailed as failure:
        refuse([words_of(failure, folder)])
    epsilon = of_run.evaluator.epsilon if command.epsilon is None else command.epsilon
    try:
        return _evaluate(command, folder, path, trained, epsilon)
    except EnvironmentFailed as failure:
        refuse([words_of(failure, folder)])


def _evaluate(
    command: EvalCommand, folder: RunFolder, path: Path, trained: Trained, epsilon: float
) -> int:
    """Play, print and film as `evaluate` says, with what was read."""
    config, spec, weights, network = trained
    config = dataclasses.replace(
        config,
        evaluator=dataclasses.replace(config.evaluator, episodes=command.episodes, epsilon=epsilon),
    )
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    means = one_line(f"{spec.protocol} {reading(config.env, spec)}", 2_000)  # by a file
    print(f"{path}: learner step {weights.version.learner_step:,}; {means}")
    if command.video:
        expect_pictures(config.env, command.seed)  # before games that may take an hour
    result = play(config, spec, weights, command.seed, lambda: False)
    assert result is not None
    returns = result.returns
    normalized = human_normalized_score(spec.name, float(returns.mean()))
    human = "" if normalized is None else f", human-normalised {normalized:.3f}"
    print(
        f"{len(returns)} games, epsilon {epsilon:g}, seed {command.seed}: "
        f"mean {returns.mean():.2f}, standard deviation {returns.std():.2f}, "
        f"min {returns.min():g}, max {returns.max():g}{human}; mean length "
        f"{result.lengths_agent_steps.mean():.0f} agent steps, {result.seconds:.0f} s"
    )
    if command.video:
        video = folder.path / "videos" / f"{spec.name}_{weights.version.learner_step:010d}.mp4"
        try:
            record_game(config.env, network, epsilon, command.seed, video)
        except OSError as error:
            refuse([f"{video}: cannot be written: {error.strerror or error}"])
        print(f"video: {video}")
    return 0
