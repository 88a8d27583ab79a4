"""The learner: one step by hand arithmetic, the target network's traps, restoring, compiling."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import HAS_COMPILER, ROOT

from common.config import AgentConfig, LearnerConfig
from common.networks import QNetwork, flatten_state, initialise
from common.types import EnvironmentSpec, ObservationSpec
from learner import assembly
from learner.assembly import resolve_threads
from learner.checkpoint import load, save
from learner.device_batch import DeviceBatch
from learner.learner import Learner, clip_gradients

CPU = torch.device("cpu")
ROWS = 8
VECTORS = EnvironmentSpec("cartpole", ObservationSpec((4,), "float32", 1), 3, 1, "")
PIXELS = EnvironmentSpec("pong", ObservationSpec((36, 36), "uint8", 4), 3, 4, "")
CART = EnvironmentSpec("cartpole_pixels", ObservationSpec((40, 90), "uint8", 2), 2, 1, "")
MLP = AgentConfig(network="mlp", hidden=(16,))
NORMALISED = AgentConfig(network="pixel_cnn", dueling=False)
CNN = AgentConfig(network="nature_cnn")
CONFIG = LearnerConfig(
    batch_size=ROWS, optimizer="adam", learning_rate=0.01, target_period_learner_steps=4
)

NEEDS_COMPILER = pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")


def make_learner(
    *,
    agent: AgentConfig = MLP,
    spec: EnvironmentSpec = VECTORS,
    device: torch.device = CPU,
    seed: int = 1,
    compile_step: bool = False,
    **changes: Any,
) -> Learner:
    return Learner(
        agent=agent,
        config=dataclasses.replace(CONFIG, **changes),
        spec=spec,
        device=device,
        seed=seed,
        compile_step=compile_step,
    )


def make_batch(seed: int, spec: EnvironmentSpec = VECTORS) -> DeviceBatch:
    rng = np.random.default_rng(seed)

    def observations() -> torch.Tensor:
        shape = (ROWS, *spec.observation.shape)
        if spec.observation.dtype == "uint8":
            return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    return DeviceBatch(
        weight=torch.from_numpy(rng.uniform(0.1, 1.0, ROWS).astype(np.float32)),
        s_tm1=observations(),
        a_tm1=torch.from_numpy(rng.integers(0, spec.num_actions, ROWS)),
        r_t=torch.from_numpy(rng.standard_normal(ROWS, dtype=np.float32)),
        discount_t=torch.full((ROWS,), 0.97),
        s_t=observations(),
    )


def same_weights(a: QNetwork, b: QNetwork) -> bool:
    return np.array_equal(flatten_state(a), flatten_state(b))


@torch.no_grad()
def naive_td(learner: Learner, batch: DeviceBatch, *, double: bool) -> torch.Tensor:
    """The TD errors row by row, with Python's own loops."""
    errors = []
    for i in range(ROWS):
        online = learner.network(batch.s_t[i : i + 1])[0].tolist()
        target = learner.target(batch.s_t[i : i + 1])[0].tolist()
        chooser = online if double else target
        bootstrap = target[chooser.index(max(chooser))]
        q = learner.network(batch.s_tm1[i : i + 1])[0].tolist()[int(batch.a_tm1[i])]
        errors.append(float(batch.r_t[i]) + float(batch.discount_t[i]) * bootstrap - q)
    return torch.tensor(errors)


def set_target_apart(learner: Learner) -> None:
    initialise(learner.target, torch.Generator().manual_seed(77))


@pytest.mark.parametrize("double", [True, False])
def test_step_reports_what_a_naive_loop_computes(double: bool) -> None:
    learner = make_learner(agent=dataclasses.replace(MLP, double=double))
    set_target_apart(learner)
    batch = make_batch(0)
    td = naive_td(learner, batch, double=double)
    other = naive_td(learner, batch, double=not double)
    assert not torch.allclose(td, other)  # or the test could not tell the two apart
    q_mean = learner.network(batch.s_tm1).gather(1, batch.a_tm1[:, None]).mean()
    result = learner.step(batch)
    torch.testing.assert_close(result.priority, td.abs(), rtol=1e-5, atol=1e-6)
    loss = torch.where(td.abs() <= 1.0, td.square() / 2, td.abs() - 0.5)
    torch.testing.assert_close(result.metrics["td_loss"], (batch.weight * loss).sum() / ROWS)
    torch.testing.assert_close(result.metrics["q_mean"], q_mean.detach())


def test_importance_weights_change_the_loss_and_never_the_priority() -> None:
    batch = make_batch(1)
    full = make_learner().step(batch._replace(weight=torch.ones(ROWS)))
    tenth = make_learner().step(batch._replace(weight=torch.full((ROWS,), 0.1)))
    assert torch.equal(tenth.priority, full.priority)
    torch.testing.assert_close(tenth.metrics["td_loss"], 0.1 * full.metrics["td_loss"])
    torch.testing.assert_close(tenth.metrics["grad_norm"], 0.1 * full.metrics["grad_norm"])


def test_priorities_are_absolute_errors_of_both_signs() -> None:
    batch = make_batch(2)
    learner = make_learner()
    td = naive_td(learner, batch, double=True)
    assert (td < 0).any() and (td > 0).any()
    assert (learner.step(batch).priority > 0).all()


def test_mse_loss_is_half_the_square() -> None:
    learner = make_learner(loss="mse")
    batch = make_batch(3)
    td = naive_td(learner, batch, double=True)
    expected = (batch.weight * td.square() / 2).mean()
    torch.testing.assert_close(learner.step(batch).metrics["td_loss"], expected)


def test_column_vectors_are_rejected_instead_of_broadcast() -> None:
    batch = make_batch(4)
    for field in ("weight", "a_tm1", "r_t", "discount_t"):
        wrong = batch._replace(**{field: getattr(batch, field).unsqueeze(1)})
        with pytest.raises(AssertionError):
            make_learner().step(wrong)


def test_target_shares_no_storage_with_the_online_network() -> None:
    learner = make_learner()
    online = {t.untyped_storage().data_ptr() for t in learner.network.state_dict().values()}
    target = {t.untyped_storage().data_ptr() for t in learner.target.state_dict().values()}
    assert not online & target
    assert same_weights(learner.network, learner.target)  # but starts equal
    for _ in range(CONFIG.target_period_learner_steps):
        learner.step(make_batch(5))
    target = {t.untyped_storage().data_ptr() for t in learner.target.state_dict().values()}
    assert not online & target  # nor after a copy


def test_target_is_unchanged_until_the_period_and_then_equal() -> None:
    learner = make_learner()
    start = flatten_state(learner.target)
    for step in range(1, 4):
        learner.step(make_batch(step))
        assert np.array_equal(flatten_state(learner.target), start), step
        assert not same_weights(learner.network, learner.target)
    learner.step(make_batch(4))
    assert same_weights(learner.network, learner.target)
    fourth = flatten_state(learner.target)
    learner.step(make_batch(5))
    assert np.array_equal(flatten_state(learner.target), fourth)
    assert learner.learner_step == 5


def test_target_copy_takes_the_buffers_too() -> None:
    learner = make_learner(target_period_learner_steps=1)
    for network, value in ((learner.network, 3.0), (learner.target, 0.0)):
        network.register_buffer("running_mean", torch.full((2,), value))
    learner.step(make_batch(6))
    assert learner.target.state_dict()["running_mean"].tolist() == [3.0, 3.0]


def test_target_is_copied_by_games_when_so_configured_and_not_by_steps() -> None:
    learner = make_learner(target_period_episodes=3)
    start = flatten_state(learner.target)
    copied_at = []
    for step, episodes in enumerate((0, 1, 2, 2, 3, 3, 4, 5, 8, 8, 9, 11)):  # 6 was passed over
        learner.step(make_batch(step))
        before = flatten_state(learner.target)
        learner.count_episodes(episodes)
        if not np.array_equal(flatten_state(learner.target), before):
            copied_at.append(episodes)
            assert same_weights(learner.network, learner.target)
        elif not copied_at:
            assert np.array_equal(flatten_state(learner.target), start)
    assert copied_at == [3, 8, 9]


def test_games_copy_no_target_where_steps_do() -> None:
    learner = make_learner(target_period_learner_steps=1000)
    start = flatten_state(learner.target)
    for episodes in range(5):
        learner.step(make_batch(episodes))
        learner.count_episodes(episodes)
    assert np.array_equal(flatten_state(learner.target), start)


def test_restored_learner_knows_the_games_of_its_last_target_copy() -> None:
    learner, restored = (make_learner(target_period_episodes=10, seed=seed) for seed in (1, 2))
    learner.count_episodes(17)
    learner.step(make_batch(0))
    restored.load_state_dict(learner.state_dict())
    restored.count_episodes(19)
    assert not same_weights(restored.network, restored.target)
    restored.count_episodes(20)
    assert same_weights(restored.network, restored.target)


# --- batch normalisation --------------------------------------------------------------------------


def statistics(network: QNetwork) -> dict[str, torch.Tensor]:
    """Return copies of the buffers: running means, variances and the number of batches."""
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("double", [True, False])
def test_running_statistics_follow_s_tm1_once_a_step_and_never_s_t(double: bool) -> None:
    learner = make_learner(agent=dataclasses.replace(NORMALISED, double=double), spec=CART)
    expected = make_learner(agent=NORMALISED, spec=CART).network
    assert expected.training
    batch = make_batch(0, CART)
    with torch.no_grad():
        expected(batch.s_tm1)
    learner.step(batch)
    wanted, actual = statistics(expected), statistics(learner.network)
    assert int(actual["torso.2.num_batches_tracked"]) == 1
    assert actual["torso.2.running_mean"].abs().max() > 0
    for name, buffer in wanted.items():
        torch.testing.assert_close(actual[name], buffer, msg=name)


@pytest.mark.parametrize("double", [True, False])
def test_bootstrap_values_are_those_that_actors_see(double: bool) -> None:
    """s_t goes through running statistics in both networks, s_tm1 through its batch's own."""
    agent = dataclasses.replace(NORMALISED, double=double)
    learner = make_learner(agent=agent, spec=CART)
    for step in range(3):  # past the initial statistics
        learner.step(make_batch(step, CART))
    set_target_apart(learner)
    batch = make_batch(9, CART)
    with torch.no_grad():
        value = learner.target(batch.s_t)
        learner.network.eval()
        selector = learner.network(batch.s_t) if double else value
        learner.network.train()
        bootstrap = value.gather(1, selector.argmax(dim=1, keepdim=True)).squeeze(1)
        kept = statistics(learner.network)
        q_tm1 = learner.network(batch.s_tm1)
        for name, buffer in learner.network.named_buffers():
            buffer.copy_(kept[name])
    td = batch.r_t + batch.discount_t * bootstrap - q_tm1.gather(1, batch.a_tm1[:, None])[:, 0]
    torch.testing.assert_close(learner.step(batch).priority, td.abs(), rtol=1e-4, atol=1e-5)
    assert learner.network.training and not learner.target.training


def test_target_moves_its_statistics_with_the_copy_alone() -> None:
    learner = make_learner(agent=NORMALISED, spec=CART)
    start = statistics(learner.target)
    for step in range(3):
        learner.step(make_batch(step, CART))
        for name, buffer in learner.target.named_buffers():
            assert torch.equal(buffer, start[name]), name
    learner.step(make_batch(3, CART))
    for name, buffer in learner.network.named_buffers():
        assert torch.equal(statistics(learner.target)[name], buffer), name
    assert int(statistics(learner.target)["torso.2.num_batches_tracked"]) == 4


def test_gradient_never_reaches_the_target() -> None:
    learner = make_learner()
    learner.step(make_batch(7))
    assert not any(p.requires_grad for p in learner.target.parameters())
    assert all(p.grad is None for p in learner.target.parameters())


@pytest.mark.parametrize("agent", [MLP, CNN, NORMALISED], ids=["mlp", "cnn", "normalised"])
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adam"},
        {"optimizer": "rmsprop"},
        {"optimizer": "rmsprop", "rmsprop_centered": False, "max_grad_value": 1.0},
    ],
    ids=["adam", "centered rmsprop", "rmsprop"],
)
def test_step_after_restore_equals_step_without_restore(
    agent: AgentConfig, changes: dict[str, Any], tmp_path: Path
) -> None:
    spec = {"mlp": VECTORS, "nature_cnn": PIXELS, "pixel_cnn": CART}[agent.network]
    learner = make_learner(agent=agent, spec=spec, **changes)
    for step in range(6):  # past one target copy, between two
        learner.step(make_batch(step, spec))
    save(tmp_path / "a.pt", {"learner": learner.state_dict()})
    restored = make_learner(agent=agent, spec=spec, seed=2, **changes)
    restored.load_state_dict(load(tmp_path / "a.pt")["learner"])
    assert restored.learner_step == 6
    for step in range(6, 10):  # over the next target copy
        ours = learner.step(make_batch(step, spec))
        theirs = restored.step(make_batch(step, spec))
        assert torch.equal(ours.priority, theirs.priority), step
        assert ours.metrics == theirs.metrics, step
        assert same_weights(learner.network, restored.network), step
        assert same_weights(learner.target, restored.target), step


def test_state_dict_is_a_copy_that_training_does_not_touch() -> None:
    learner = make_learner()
    state = learner.state_dict()
    weight = state["network"]["hidden.weight"].clone()
    average = state["optimizer"]["state"]["square_average"][0].clone()
    learner.step(make_batch(0))
    assert torch.equal(state["network"]["hidden.weight"], weight)
    assert torch.equal(state["optimizer"]["state"]["square_average"][0], average)


def test_state_of_another_network_or_optimizer_is_rejected_and_changes_nothing() -> None:
    learner = make_learner()
    before = flatten_state(learner.network)
    wider = make_learner(agent=AgentConfig(network="mlp", hidden=(17,)))
    with pytest.raises(ValueError, match="Expect the state of this configuration's network"):
        learner.load_state_dict(wider.state_dict())
    with pytest.raises(ValueError, match="state of optimizer Adam, actually: CenteredRmsProp"):
        learner.load_state_dict(make_learner(optimizer="rmsprop").state_dict())
    broken = make_learner(seed=3).state_dict()
    del broken["optimizer"]["state"]["steps"]
    with pytest.raises(ValueError, match="configuration's optimizer steps"):
        learner.load_state_dict(broken)
    assert np.array_equal(flatten_state(learner.network), before)


def test_same_seed_gives_the_same_steps_and_another_seed_others() -> None:
    results = [make_learner(seed=seed).step(make_batch(0)) for seed in (1, 1, 2)]
    assert torch.equal(results[0].priority, results[1].priority)
    assert not torch.equal(results[0].priority, results[2].priority)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_warm_up_changes_neither_weights_nor_optimizer(optimizer: str) -> None:
    cold, warm = make_learner(optimizer=optimizer), make_learner(optimizer=optimizer)
    warm.warm_up()
    assert warm.learner_step == 0
    for step in range(3):
        cold.step(make_batch(step))
        warm.step(make_batch(step))
        warm.warm_up()  # in the middle of training, too
    assert same_weights(cold.network, warm.network)
    assert same_weights(cold.target, warm.target)


def test_learning_lowers_the_loss_on_a_fixed_batch() -> None:
    learner = make_learner(target_period_learner_steps=10_000)
    batch = make_batch(0)
    losses = [float(learner.step(batch).metrics["td_loss"]) for _ in range(200)]
    assert losses[-1] < 0.05 * losses[0]


def test_norm_clipping_scales_and_reports_the_norm_before_it() -> None:
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    clipped, norm = clip_gradients(gradients, 1.0, None)
    assert norm.item() == pytest.approx(5.0)
    torch.testing.assert_close(clipped[0], torch.tensor([3.0 / 5.0, 0.0]))
    torch.testing.assert_close(clipped[1], torch.tensor([[4.0 / 5.0]]))
    short, norm = clip_gradients(gradients, 10.0, None)
    assert norm.item() == pytest.approx(5.0)
    assert torch.equal(short[0], gradients[0])


def test_value_clipping_cuts_each_element() -> None:
    gradients = [torch.tensor([3.0, -0.5]), torch.tensor([-4.0])]
    clipped, norm = clip_gradients(gradients, None, 1.0)
    assert norm.item() == pytest.approx((9.0 + 0.25 + 16.0) ** 0.5)
    assert clipped[0].tolist() == [1.0, -0.5]
    assert clipped[1].tolist() == [-1.0]


def test_step_reports_the_gradient_norm_before_clipping() -> None:
    free = make_learner(max_grad_norm=None).step(make_batch(0))
    clipped = make_learner(max_grad_norm=1e-3).step(make_batch(0))
    assert torch.equal(free.metrics["grad_norm"], clipped.metrics["grad_norm"])
    assert float(free.metrics["grad_norm"]) > 1e-3


def test_clipping_changes_the_step() -> None:
    free = make_learner(optimizer="rmsprop", max_grad_norm=None)
    clipped = make_learner(optimizer="rmsprop", max_grad_norm=1e-5)
    free.step(make_batch(0))
    clipped.step(make_batch(0))
    assert not same_weights(free.network, clipped.network)


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("double", "compile_step"),
    [
        pytest.param(False, False, id="eager"),
        pytest.param(True, False, id="double-eager"),
        pytest.param(True, True, id="double-compiled", marks=NEEDS_COMPILER),
    ],
)
def test_bfloat16_rounds_the_hidden_layers_and_nothing_else(
    double: bool, compile_step: bool
) -> None:
    agent = dataclasses.replace(CNN, double=double)
    full = make_learner(agent=agent, spec=PIXELS)
    mixed = make_learner(agent=agent, spec=PIXELS, precision="bfloat16", compile_step=compile_step)
    batch = make_batch(0, PIXELS)
    before = flatten_state(mixed.network).view(np.float32)
    ours, theirs = full.step(batch), mixed.step(batch)
    assert not torch.equal(ours.priority, theirs.priority)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.005)
    made = (theirs.priority, *theirs.metrics.values())
    for actual in (*made, *mixed.network.state_dict().values()):
        assert actual.dtype == torch.float32
    # Not on the grid of bfloat16, as all would be had the heads been rounded.
    with torch.no_grad():
        q = mixed.network.values(mixed.network.as_float(batch.s_t))
    assert not torch.equal(q, q.bfloat16().float())
    # Adam's first step moves whatever has a gradient.
    expected, moved = (
        np.mean(before != flatten_state(learner.network).view(np.float32))
        for learner in (full, mixed)
    )
    assert moved == pytest.approx(expected, rel=0.02)


def test_bfloat16_gradients_point_where_those_of_float32_do() -> None:
    """No layer is left out, the ones that the target's pass and the selector's cast before too."""
    gradients = []
    for precision in ("float32", "bfloat16"):
        learner = make_learner(agent=CNN, spec=PIXELS, precision=precision)
        gradients.append(learner._gradients(make_batch(0, PIXELS))[1])
    for (name, _), ours, theirs in zip(learner.network.named_parameters(), *gradients, strict=True):
        cosine = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
        assert cosine > 0.99, name


@NEEDS_COMPILER
@pytest.mark.parametrize(
    ("agent", "spec", "optimizer", "tolerance"),
    # Dividing by a batch's standard deviation makes rounding grow from step to step.
    [
        pytest.param(MLP, VECTORS, "rmsprop", 1e-4, id="mlp-rmsprop", marks=pytest.mark.slow),
        pytest.param(CNN, PIXELS, "adam", 1e-4, id="cnn-adam"),
        pytest.param(NORMALISED, CART, "adam", 1e-3, id="normalised-adam"),
    ],
)
def test_compiled_steps_equal_eager_ones_compile_once_and_restore_in_place(
    agent: AgentConfig, spec: EnvironmentSpec, optimizer: str, tolerance: float
) -> None:
    eager, compiled = (
        make_learner(agent=agent, spec=spec, optimizer=optimizer, compile_step=compile_step)
        for compile_step in (False, True)
    )
    torch._dynamo.reset()  # what other tests compiled counts as recompiling
    compiled.warm_up()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(6):
            batch = make_batch(step, spec)
            ours, theirs = eager.step(batch), compiled.step(batch)
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance / 10)
        for name, buffer in eager.network.named_buffers():
            other = compiled.network.get_buffer(name)
            torch.testing.assert_close(buffer, other, rtol=tolerance, atol=tolerance / 10)
        state = compiled.state_dict()
        once = compiled.step(make_batch(6, spec))
        compiled.load_state_dict(state)
        again = compiled.step(make_batch(6, spec))
    assert torch.equal(once.priority, again.priority)
    assert torch.equal(once.metrics["grad_norm"], again.metrics["grad_norm"])


def test_learner_gets_the_threads_it_is_told_or_the_cores_its_neighbours_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assembly, "available_cores", lambda: 8)
    assert resolve_threads(3, neighbours=100) == 3
    assert resolve_threads(0, neighbours=0) == 8
    assert resolve_threads(0, neighbours=5) == 3
    assert resolve_threads(0, neighbours=8) == resolve_threads(0, neighbours=100) == 1


# What a compiler needs, spoilt one by one: environment variables, and what is then said of it.
SPOILT = {
    "a compiler that fails": ({"CXX": "/bin/false"}, "InvalidCxxCompiler: No working C++ compiler"),
    "no compiler": ({"PATH": "/nowhere", "CXX": ""}, "InvalidCxxCompiler: No working C++ compiler"),
    "one that compiles nothing": (
        {"CXX": "{folder}/broken-cxx"},
        "CppCompileError: C++ compile error: {folder}/broken-cxx: error: out of licences",
    ),
    "a cache that is a file": (
        {"TORCHINDUCTOR_CACHE_DIR": "/etc/passwd"},
        "[Errno 17] File exists: '/etc/passwd'",
    ),
    "a cache that cannot be made": (
        {"TORCHINDUCTOR_CACHE_DIR": "/proc/nowhere"},
        "No such file or directory: '/proc/nowhere'",
    ),
    "nowhere for temporary files": ({"TMPDIR": "/proc"}, "g++: Cannot create temporary file"),
}
# Whole runs meet a compiler that fails in test_broken_compiler.py, also with `compile on`.
SELDOM = ("a compiler that fails", "no compiler", "a cache that is a file")
WARMED = """
import sys
sys.path.insert(0, "tests")
from test_learner import *
learner = make_learner(agent=NORMALISED, spec=CART, compile_step=True, compile="auto")
started = learner.state_dict()
said = learner.warm_up()
assert not learner.is_compiled
assert repr(learner.state_dict()) == repr(started) and "tensor" in repr(started)
eager = make_learner(agent=NORMALISED, spec=CART)
for step in range(3):
    ours, theirs = eager.step(make_batch(step, CART)), learner.step(make_batch(step, CART))
    assert torch.equal(ours.priority, theirs.priority)
assert same_weights(eager.network, learner.network)
print(said)
"""


@NEEDS_COMPILER
@pytest.mark.parametrize(
    "what", [pytest.param(w, marks=[pytest.mark.slow] * (w in SELDOM)) for w in SPOILT]
)
def test_learner_that_cannot_compile_steps_eagerly_and_says_why(what: str, tmp_path: Path) -> None:
    """In a process of its own: what torch finds out about the compiler it keeps."""
    broken = tmp_path / "broken-cxx"
    broken.write_text(
        '#!/bin/sh\ncase "$1" in -*version) exec g++ "$@";; esac\n'
        'echo "error: out of licences" >&2; exit 1\n'
    )
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    changes, reason = SPOILT[what]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        **{name: value.format(folder=tmp_path) for name, value in changes.items()},
    }
    done = subprocess.run(
        [sys.executable, "-c", WARMED],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    assert said.startswith("steps are not compiled: "), said
    assert reason.format(folder=tmp_path) in said


def test_fault_that_is_not_the_compilers_is_raised_as_it_is() -> None:
    """Falling back must not hide what fails eagerly, too."""
    learner = make_learner(compile_step=True)

    def gradients(batch: DeviceBatch) -> None:
        raise ZeroDivisionError("not the compiler")

    learner._run_gradients = learner._gradients = gradients  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError, match="not the compiler"):
        learner.warm_up()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_tuning_the_allocator_works_in_a_process_of_its_own() -> None:
    # Not in this one: it would stay tuned, for every test after.
    code = "from learner.learner import tune_allocator; print(tune_allocator())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "True"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("compile_step", [False, True], ids=["eager", "compiled"])
def test_cuda_steps_equal_cpu_steps(compile_step: bool) -> None:
    device = torch.device("cuda:0")
    here = make_learner(agent=CNN, spec=PIXELS)
    there = make_learner(agent=CNN, spec=PIXELS, device=device, compile_step=compile_step)
    there.warm_up()
    assert same_weights(here.network, there.network)
    with torch.backends.cudnn.flags(allow_tf32=False):
        for step in range(6):
            batch = make_batch(step, PIXELS)
            ours = here.step(batch)
            theirs = there.step(DeviceBatch(*(tensor.to(device) for tensor in batch)))
            pairs = [(theirs.priority, ours.priority)]
            pairs += [(theirs.metrics[name], ours.metrics[name]) for name in ours.metrics]
            for one, other in pairs:
                assert one.device == device
                torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_step_never_waits_for_the_device() -> None:
    device = torch.device("cuda:0")
    learner = make_learner(agent=CNN, spec=PIXELS, device=device)
    batch = DeviceBatch(*(tensor.to(device) for tensor in make_batch(0, PIXELS)))
    learner.step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(CONFIG.target_period_learner_steps):
            learner.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
