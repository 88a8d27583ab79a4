"""The numerics of learning, on random inputs, against formulas written out in double precision.

numpy's float64 and no torch on the expected side. Tolerances are what float32 may lose to rounding:
eps is its machine epsilon, 2^-23.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.priority import first_priority
from common.config import AgentConfig, LearnerConfig
from common.heads import QHead
from common.networks import initialise
from common.presets import PRESETS
from common.targets import n_step_target, td_error
from common.types import EnvironmentSpec, ObservationSpec
from learner.device_batch import DeviceBatch
from learner.learner import Learner, clip_gradients
from learner.losses import half_square, huber, weighted_mean
from learner.optimizers import make_optimizer

EPS = float(np.finfo(np.float32).eps)
SEEDS = range(20)
# Rows and actions: a single row, odd sizes that no vector register divides, the batches in use.
SHAPES = [(1, 1), (1, 6), (7, 2), (33, 18), (512, 4)]

Double = NDArray[np.float64]


def spread(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Return numbers of both signs and of six orders of magnitude."""
    return (rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 3, shape)).astype(np.float32)


class Inputs:
    """Random inputs of one target: float32 for us, the same numbers in double for the formula."""

    def __init__(self, seed: int, rows: int, actions: int) -> None:
        rng = np.random.default_rng([seed, rows, actions])
        self.q_tm1 = spread(rng, rows, actions)
        self.a_tm1 = rng.integers(actions, size=rows)
        self.r_t = spread(rng, rows)
        # gamma^m, or 0 where the game terminated.
        steps = rng.integers(1, 6, rows)
        self.discount_t = np.where(rng.random(rows) < 0.2, 0.0, 0.99**steps).astype(np.float32)
        self.q_t_value = spread(rng, rows, actions)
        self.q_t_selector = spread(rng, rows, actions)
        self.weight = rng.uniform(0.0, 1.0, rows).astype(np.float32)

    def target(self, selector: NDArray[np.float32]) -> tuple[Double, Double]:
        """Return float64[rows] target and the sum of the magnitudes of its terms."""
        r_t, discount_t = self.r_t.astype(np.float64), self.discount_t.astype(np.float64)
        chosen = [int(max(range(len(q)), key=lambda a: q[a])) for q in selector.tolist()]
        bootstrap = np.array(
            [self.q_t_value[row, a] for row, a in enumerate(chosen)], dtype=np.float64
        )
        return r_t + discount_t * bootstrap, abs(r_t) + abs(discount_t * bootstrap)

    def td(self, selector: NDArray[np.float32]) -> tuple[Double, Double]:
        """Return float64[rows] TD error and the sum of the magnitudes of its terms."""
        target, magnitude = self.target(selector)
        q = np.array([self.q_tm1[row, a] for row, a in enumerate(self.a_tm1)], dtype=np.float64)
        return target - q, magnitude + abs(q)


def double_huber(td: Double, delta: float) -> Double:
    return np.where(abs(td) <= delta, td**2 / 2, delta * (abs(td) - delta / 2))


def expect_within(actual: Tensor | NDArray, expected: Double, bound: Double | float) -> None:
    """Assert |actual - expected| <= bound everywhere, in double."""
    numbers = actual.detach().numpy() if isinstance(actual, Tensor) else actual
    assert numbers.shape == expected.shape
    excess = abs(numbers.astype(np.float64) - expected) - bound
    assert excess.max() <= 0.0, f"off by {excess.max()} more than rounding explains"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("rows", "actions"), SHAPES)
def test_targets_and_td_errors(seed: int, rows: int, actions: int) -> None:
    given = Inputs(seed, rows, actions)
    for selector in (given.q_t_selector, given.q_t_value):  # double DQN, and DQN
        target = n_step_target(
            torch.from_numpy(given.r_t),
            torch.from_numpy(given.discount_t),
            torch.from_numpy(given.q_t_value),
            torch.from_numpy(selector),
        )
        td = td_error(torch.from_numpy(given.q_tm1), torch.from_numpy(given.a_tm1), target)
        expected, magnitude = given.target(selector)
        expect_within(target, expected, EPS * magnitude)
        expected, magnitude = given.td(selector)
        expect_within(td, expected, 2 * EPS * magnitude)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("rows", "actions"), SHAPES)
def test_first_priorities(seed: int, rows: int, actions: int) -> None:
    given = Inputs(seed, rows, actions)
    columns = given.q_tm1, given.a_tm1.astype(np.int32), given.r_t, given.discount_t
    priority = first_priority(QHead.first_priority, *columns, given.q_t_value)
    td, magnitude = given.td(given.q_t_value)
    expect_within(priority, abs(td), 2 * EPS * magnitude)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows", [1, 7, 512])
@pytest.mark.parametrize("delta", [0.1, 1.0, 3.0])
def test_losses(seed: int, rows: int, delta: float) -> None:
    rng = np.random.default_rng([seed, rows])
    td = spread(rng, rows)
    td[0] = rng.choice([-delta, delta])  # where the pieces meet
    weight = rng.uniform(0.0, 1.0, rows).astype(np.float32)
    double, double_weight = td.astype(np.float64), weight.astype(np.float64)
    for loss, expected in (
        (huber(torch.from_numpy(td), delta=delta), double_huber(double, delta)),
        (half_square(torch.from_numpy(td)), double**2 / 2),
    ):
        expect_within(loss, expected, 4 * EPS * expected)
        mean = weighted_mean(loss, torch.from_numpy(weight))
        whole = np.array(sum((double_weight * expected).tolist()) / rows)
        expect_within(mean, whole, 16 * EPS * whole)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("rows", "actions"), SHAPES)
def test_gradients_of_the_weighted_loss(seed: int, rows: int, actions: int) -> None:
    """d loss / d Q(s_tm1, a_tm1) = -weight * clip(td, -1, 1) / rows, and 0 for other actions."""
    given = Inputs(seed, rows, actions)
    q_tm1 = torch.from_numpy(given.q_tm1).requires_grad_()
    target = n_step_target(
        torch.from_numpy(given.r_t),
        torch.from_numpy(given.discount_t),
        torch.from_numpy(given.q_t_value),
        torch.from_numpy(given.q_t_selector),
    )
    td = td_error(q_tm1, torch.from_numpy(given.a_tm1), target)
    loss = weighted_mean(huber(td, delta=1.0), torch.from_numpy(given.weight))
    (gradient,) = torch.autograd.grad(loss, q_tm1)
    expected, magnitude = given.td(given.q_t_selector)
    clipped = np.zeros((rows, actions))
    rounding = np.zeros((rows, actions))
    for row, a in enumerate(given.a_tm1):
        share = float(given.weight[row]) / rows
        clipped[row, a] = -share * min(max(expected[row], -1.0), 1.0)
        rounding[row, a] = share * 4 * EPS * (magnitude[row] + 1.0)
    expect_within(gradient, clipped, rounding)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("max_norm", [1e-3, 10.0, 1e9])
def test_clipped_gradients_are_those_of_torch_and_of_the_formula(
    seed: int, max_norm: float
) -> None:
    """Pascanu et al. 2013, algorithm 1, on the global norm."""
    rng = np.random.default_rng(seed)
    gradients = [spread(rng, *shape) for shape in ((3, 4), (1,), (5, 2, 2))]
    clipped, norm = clip_gradients([torch.from_numpy(g) for g in gradients], max_norm, None)
    length = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients))
    expect_within(norm, np.array(length), 8 * EPS * length)
    parameters = [torch.nn.Parameter(torch.zeros(g.shape)) for g in gradients]
    for parameter, g in zip(parameters, gradients, strict=True):
        parameter.grad = torch.from_numpy(g.copy())
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    for ours, parameter, g in zip(clipped, parameters, gradients, strict=True):
        expected = g.astype(np.float64) * min(1.0, max_norm / length)
        # What keeps the factor finite takes 1e-6 / length away from it.
        expect_within(ours, expected, (16 * EPS + 1e-6 / length) * abs(expected))
        assert parameter.grad is not None
        torch.testing.assert_close(ours, parameter.grad, rtol=16 * EPS, atol=0.0)


# --- optimisers -----------------------------------------------------------------------------------


class DoubleOptimizer:
    """The optimiser that a LearnerConfig names, as its paper writes it."""

    def __init__(self, config: LearnerConfig) -> None:
        self._config = config
        self._steps = 0
        self._mean: dict[str, Any] = {}
        self._square: dict[str, Any] = {}

    def update(self, name: str, parameter: Double, gradient: Double) -> Double:
        """Return the parameter after a step along its gradient."""
        rate, epsilon = self._config.learning_rate, self._config.optimizer_epsilon
        if self._config.optimizer == "adam":
            # Kingma & Ba 2015, algorithm 1.
            mean = self._average(self._mean, name, gradient, 0.9) / (1 - 0.9**self._steps)
            square = self._average(self._square, name, gradient**2, 0.999)
            root = np.sqrt(square / (1 - 0.999**self._steps))
            return parameter - rate * mean / (root + epsilon)
        decay = self._config.rmsprop_decay
        square = self._average(self._square, name, gradient**2, decay)
        if not self._config.rmsprop_centered:
            return parameter - rate * gradient / (np.sqrt(square) + epsilon)
        # Graves 2013, equations 38 to 40; the same in TensorFlow's
        # tensorflow/python/training/rmsprop_test.py, _rmsprop_update_numpy.
        mean = self._average(self._mean, name, gradient, decay)
        return parameter - rate * gradient / np.sqrt(square - mean**2 + epsilon)

    def begin(self) -> None:
        """Begin the next step."""
        self._steps += 1

    @staticmethod
    def _average(averages: dict[str, Any], name: str, value: Double, decay: float) -> Double:
        averages[name] = decay * averages.get(name, 0.0) + (1 - decay) * value
        found: Double = averages[name]
        return found


OPTIMIZERS = {
    **{name: preset.config.learner for name, preset in PRESETS.items()},
    # TensorFlow's rmsprop_test.py, _TEST_PARAM_VALUES, without momentum.
    "centred, large": LearnerConfig(
        learning_rate=0.5, rmsprop_decay=0.9, optimizer_epsilon=1e-3, rmsprop_centered=True
    ),
    "plain, large": LearnerConfig(
        learning_rate=0.5, rmsprop_decay=0.95, optimizer_epsilon=1e-3, rmsprop_centered=False
    ),
    "adam, large": LearnerConfig(optimizer="adam", learning_rate=0.5, optimizer_epsilon=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("seed", range(3))
def test_optimizers_move_as_their_papers_say(name: str, seed: int) -> None:
    """On gradients of five orders of magnitude, of which some stay 0."""
    config = OPTIMIZERS[name]
    rng = np.random.default_rng(seed)
    shapes = [(4, 3), (1,), (2, 3, 2)]
    scales = [10.0 ** rng.uniform(-4, 1, shape) * (rng.random(shape) < 0.9) for shape in shapes]
    ours = [torch.zeros(shape) for shape in shapes]
    theirs = [np.zeros(shape) for shape in shapes]
    optimizer, expected = make_optimizer(config, ours), DoubleOptimizer(config)
    for _ in range(40):
        gradients = [
            (scale * rng.standard_normal(scale.shape)).astype(np.float32) for scale in scales
        ]
        optimizer.update(ours, [torch.from_numpy(g) for g in gradients])
        expected.begin()
        theirs = [
            expected.update(str(i), parameter, gradient.astype(np.float64))
            for i, (parameter, gradient) in enumerate(zip(theirs, gradients, strict=True))
        ]
        for mine, other in zip(ours, theirs, strict=True):
            expect_within(mine, other, 2e-4 * abs(other) + 1e-4 * config.learning_rate)
    assert max(abs(other).max() for other in theirs) > config.learning_rate, "nothing moved"


# --- whole learner steps --------------------------------------------------------------------------

VECTORS = EnvironmentSpec("vectors", ObservationSpec((5,), "float32", 1), 3, 1, "")
ROWS = 16


class DoubleNetwork:
    """A network of one hidden layer, dueling or not, and its gradient, by hand."""

    def __init__(self, state: dict[str, Tensor], hidden: int) -> None:
        self.state = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
        self._is_dueling = "value.weight" in state
        self._hidden = hidden

    def q(self, s: Double) -> Double:
        """Return float64[rows, actions] (Wang et al. 2016, equation 9, where it is dueling)."""
        value, advantage = self._streams(self._active(s))
        mean = advantage.mean(axis=1, keepdims=True)
        return value + advantage - mean if self._is_dueling else advantage

    def gradients(self, s: Double, dq: Double) -> dict[str, Double]:
        """Return the gradient of each parameter, given float64[rows, actions] of the Q-values."""
        w, active = self.state, self._active(s)
        if self._is_dueling:
            d_advantage = dq - dq.mean(axis=1, keepdims=True)
            d_value = dq.sum(axis=1, keepdims=True)
            left, right = active[:, : self._hidden], active[:, self._hidden :]
            found = {
                "value.weight": d_value.T @ left,
                "value.bias": d_value.sum(axis=0),
                "advantage.weight": d_advantage.T @ right,
                "advantage.bias": d_advantage.sum(axis=0),
            }
            d_active = np.concatenate(
                [d_value @ w["value.weight"], d_advantage @ w["advantage.weight"]], axis=1
            )
        else:
            found = {"advantage.weight": dq.T @ active, "advantage.bias": dq.sum(axis=0)}
            d_active = dq @ w["advantage.weight"]
        d_sum = d_active * (active > 0.0)
        return found | {"hidden.weight": d_sum.T @ s, "hidden.bias": d_sum.sum(axis=0)}

    def _active(self, s: Double) -> Double:
        summed: Double = s @ self.state["hidden.weight"].T + self.state["hidden.bias"]
        return np.maximum(summed, 0.0)

    def _streams(self, active: Double) -> tuple[Double, Double]:
        """Return the value, 0 where there is no such stream, and the advantage."""
        w = self.state
        if not self._is_dueling:
            return np.zeros((1, 1)), active @ w["advantage.weight"].T + w["advantage.bias"]
        left, right = active[:, : self._hidden], active[:, self._hidden :]
        return (
            left @ w["value.weight"].T + w["value.bias"],
            right @ w["advantage.weight"].T + w["advantage.bias"],
        )


def random_batch(rng: np.random.Generator) -> DeviceBatch:
    return DeviceBatch(
        weight=torch.from_numpy(rng.uniform(0.1, 1.0, ROWS).astype(np.float32)),
        s_tm1=torch.from_numpy(rng.standard_normal((ROWS, 1, 5), dtype=np.float32)),
        a_tm1=torch.from_numpy(rng.integers(0, 3, ROWS)),
        r_t=torch.from_numpy(2 * rng.standard_normal(ROWS, dtype=np.float32)),
        discount_t=torch.from_numpy(rng.choice([0.0, 0.97, 0.99], ROWS).astype(np.float32)),
        s_t=torch.from_numpy(rng.standard_normal((ROWS, 1, 5), dtype=np.float32)),
    )


def double_step(
    online: DoubleNetwork,
    target: DoubleNetwork,
    optimizer: DoubleOptimizer,
    batch: DeviceBatch,
    config: LearnerConfig,
    *,
    double: bool,
) -> dict[str, Double]:
    """Take one learner step in double precision; return what StepResult has."""
    weight, s_tm1, a_tm1, r_t, discount_t, s_t = (
        (tensor.double() if tensor.is_floating_point() else tensor).numpy() for tensor in batch
    )
    s_tm1, s_t, rows = s_tm1[:, 0], s_t[:, 0], np.arange(ROWS)
    chooser = online if double else target
    bootstrap = target.q(s_t)[rows, chooser.q(s_t).argmax(axis=1)]
    q = online.q(s_tm1)[rows, a_tm1]
    td = r_t + discount_t * bootstrap - q
    loss, slope = td**2 / 2, td
    if config.loss == "huber":
        loss, slope = double_huber(td, 1.0), np.clip(td, -1.0, 1.0)
    dq = np.zeros((ROWS, 3))
    dq[rows, a_tm1] = -weight * slope / ROWS
    gradients = online.gradients(s_tm1, dq)
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    scale = 1.0 if config.max_grad_norm is None else min(1.0, config.max_grad_norm / norm)
    most = np.inf if config.max_grad_value is None else config.max_grad_value
    optimizer.begin()
    for name, gradient in gradients.items():
        clipped = np.clip(scale * gradient, -most, most)
        online.state[name] = optimizer.update(name, online.state[name], clipped)
    return {
        "priority": abs(td),
        "td_loss": np.array((weight * loss).sum() / ROWS),
        "q_mean": np.array(q.mean()),
        "grad_norm": np.array(norm),
    }


# What the seeds have and other presets have not; a tenth of all elements are larger.
OF_SEEDS = {
    "rmsprop_centered": False,
    "max_grad_norm": None,
    "max_grad_value": 0.03,
    "target_period_episodes": 3,
    "target_period_learner_steps": 1_000,
}


def learner_config(changes: dict[str, Any]) -> LearnerConfig:
    return LearnerConfig(
        **{
            "batch_size": ROWS,
            "learning_rate": 1e-2,
            "optimizer_epsilon": 1.5e-4,
            "target_period_learner_steps": 3,
            "max_grad_norm": 0.5,
            **changes,
        }
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dueling", [True, False], ids=["dueling", "plain"])
@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "adam"}, {"loss": "mse", "max_grad_norm": None}, OF_SEEDS],
    ids=["rmsprop", "adam", "mse", "seeds"],
)
def test_learner_steps(seed: int, dueling: bool, double: bool, changes: dict[str, Any]) -> None:
    """Ten steps over three copies of the target: losses, priorities, norms and every weight."""
    agent = AgentConfig(network="mlp", hidden=(16,), dueling=dueling, double=double)
    config = learner_config(changes)
    learner = Learner(
        agent=agent,
        config=config,
        spec=VECTORS,
        device=torch.device("cpu"),
        seed=seed,
        compile_step=False,
    )
    initialise(learner.target, torch.Generator().manual_seed(100 + seed))
    online = DoubleNetwork(learner.network.state_dict(), 16)
    target = DoubleNetwork(learner.target.state_dict(), 16)
    optimizer = DoubleOptimizer(config)
    rng = np.random.default_rng(seed)
    start = copy.deepcopy(online.state)
    for step in range(1, 11):
        batch = random_batch(rng)
        result = learner.step(batch)
        learner.count_episodes(step)  # as many games as steps: either clock says the same
        expected = double_step(online, target, optimizer, batch, config, double=double)
        if step % 3 == 0:
            target.state = copy.deepcopy(online.state)
        for name, value in expected.items():
            actual = result.priority if name == "priority" else result.metrics[name]
            expect_within(actual, value, 2e-4 * abs(value).max() + 1e-5)
        for name, tensor in learner.network.state_dict().items():
            expect_within(tensor, online.state[name], 0.01 * config.learning_rate)
        for name, tensor in learner.target.state_dict().items():
            expect_within(tensor, target.state[name], 0.01 * config.learning_rate)
    moved = max(abs(online.state[name] - start[name]).max() for name in start)
    assert moved > 3 * config.learning_rate, "the weights hardly moved: the test has no power"
