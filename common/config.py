"""All hyperparameters: frozen dataclasses, one per part, and `Config` that holds them.

The only home of defaults. Order of precedence: preset < `--config` file < flag. `problems()` names
every impossible value at once.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from tyro.conf import arg

from common.schema import SHARE, Bounds, counted, from_zero, positive, shown

# Beyond these a setting is a slip of the hand or somebody's joke; what this machine can hold of
# the rest, driver.machine_needs asks. Frames and steps: a century at 3 million frames/s.
# Transitions: an insertion id has 40 bits for them, and 7 for the shard (replay.storage).
_STEPS = 10**16
_TRANSITIONS = 10**12
_MAX_SHARDS = 128
_PROCESSES = 100_000
_MINUTES = 60 * 24 * 366.0
_PUNISHMENT = Bounds(-1e9, 0.0, "finite and <= 0", "finite and <= 0")
LADDER_EXPONENT = Bounds(0.0, 1e6, "finite and >= 0", "<= 1e6")
EVALUATION_GAMES = counted(10**6)
_MOST_TEXT = 200
_MOST_LAYERS = 100
_RETURN = Bounds(-1e300, 1e300, "finite", "finite")

AlgorithmName = Literal["dqn"]
"""Each has its file in learner.algorithms and its entry in common.heads."""
NetworkName = Literal["nature_cnn", "nips_cnn", "pixel_cnn", "mlp"]
"""Each has its entry in common.torsos."""
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class EnvConfig:
    """The environment and how it is seen."""

    id: Annotated[str, arg(aliases=["--env"], metavar="ID")] = "pong"
    """`pong`, `ALE/Pong-v5`, `PongNoFrameskip-v4`, `CartPole-v1-pixels` or a gymnasium id; of
    `module:Name-v0` the module is imported."""
    sticky_actions: Annotated[float | None, SHARE] = None
    """Chance that the last action is repeated; None: as the id says (0.25 for ALE/*-v5 and
    *-v0, else 0)."""
    full_action_space: bool = False
    """All joystick actions that the console has for the game instead of the game's own: 18, or 9
    (Machado et al. 2018, section 5)."""
    noop_max: Annotated[int, from_zero(100_000)] = 30
    """Most random no-ops at a game's start, in emulator frames (Mnih et al. 2015, Methods: 30)."""
    fire_reset: bool = False
    """Press FIRE for one frame at a game's start on Atari, as ale-py does; the classic wrappers
    (OpenAI Baselines) hold it for a whole agent step, and press again after a lost life."""
    life_loss_terminates: bool = True
    """In training, a lost life ends the value, not the game (Mnih et al. 2015, Methods)."""
    life_loss_reward: Annotated[float, _PUNISHMENT] = 0.0
    """Learned with each lost life, before clipping; no part of any return that is reported."""
    clip_rewards: bool | None = None
    """Learn from rewards clipped to [-1, 1] (Mnih et al. 2015); None: on Atari and nowhere else;
    reported returns are raw."""
    action_repeat_frames: Annotated[int, counted(1_000)] = 4
    """Emulator frames per agent step on Atari. Of the last two the maximum is taken, after they are
    grey, as gymnasium does; Mnih et al. 2015 and the classic wrappers take it before, in colour."""
    stack: Annotated[int, counted(255)] = 4
    """Frames in an observation on Atari; others use 1, and CartPole's pixels 2."""
    max_game_frames: Annotated[int, counted(2**31 - 1)] = 108_000
    """Emulator frames after which a game is truncated, 30 minutes (Hessel et al. 2018)."""


@dataclass(frozen=True)
class AgentConfig:
    """What actors and learner must share: the algorithm, the network and the n-step target."""

    algorithm: AlgorithmName = "dqn"
    """`dqn`: action values by their TD errors (Mnih et al. 2015), double or plain."""
    network: NetworkName = "nature_cnn"
    """`nature_cnn`: 32@8s4, 64@4s2, 64@3s1, 512 (Mnih et al. 2015); `nips_cnn`: 16@8s4, 32@4s2, 256
    (Mnih et al. 2013), for learning on CPUs; `pixel_cnn`: 16, 32, 32, each @5s2 with batch
    normalisation, of the frames' differences; `mlp`: for vectors, and what no other can see."""
    hidden: Annotated[tuple[int, ...], counted(10**6)] = (256, 256)
    """Hidden layer widths of `mlp`."""
    dueling: bool = True
    """Value and advantage streams (Wang et al. 2016, equation 9)."""
    double: bool = True
    """Choose the bootstrap action with the online network (van Hasselt et al. 2016, equation 4)."""
    n_step: Annotated[int, counted(1_000)] = 3
    """Agent steps in a return (Horgan et al. 2018, appendix C)."""
    gamma: Annotated[float, SHARE] = 0.99
    """Discount per agent step."""


@dataclass(frozen=True)
class ActorConfig:
    """The processes that play."""

    count: Annotated[int, arg(aliases=["--actors"]), counted(_PROCESSES)] = 8
    """N, actor processes."""
    envs: Annotated[int, arg(aliases=["--envs-per-actor"]), counted(_PROCESSES)] = 8
    """E, environments per actor, stepped as one C++ vector."""
    epsilon_schedule: Literal["ladder", "exponential"] = "ladder"
    """`ladder`: one rate per environment (Horgan et al. 2018, section 4); `exponential`: decays."""
    epsilon: Annotated[float, SHARE] = 0.4
    """Base of the ladder."""
    epsilon_alpha: Annotated[float, LADDER_EXPONENT] = 7.0
    """Exponent of the ladder: eps ** (1 + alpha * i / (N*E - 1))."""
    epsilon_start: Annotated[float, SHARE] = 1.0
    """Exponential schedule at agent step 0."""
    epsilon_end: Annotated[float, SHARE] = 0.05
    """Exponential schedule in the limit."""
    epsilon_decay_agent_steps: Annotated[float, positive(_STEPS)] = 30_000.0
    """Exponential schedule: agent steps of the run until 1/e of the way to the end is left."""
    segment_transitions: Annotated[int, counted(10**6)] = 50
    """Transitions per pushed segment (the B = 50 of Horgan et al. 2018)."""
    weights_poll_agent_steps: Annotated[int, counted(_STEPS)] = 400
    """An actor asks for newer weights after so many of its own agent steps (Horgan et al. 2018: 400
    frames, about 2.8 s of an actor)."""
    push_window: Annotated[int, counted(1_000)] = 2
    """Pushes an actor may have in flight."""
    cpus: Annotated[float | Literal["auto"], positive(10_000)] = "auto"
    """CPUs that Ray reserves for an actor; `auto`: 1 on a cluster, else its share of the cores."""


@dataclass(frozen=True)
class ReplayConfig:
    """What is remembered, and how fast it may be used."""

    capacity: Annotated[int, counted(_TRANSITIONS)] = 2_000_000
    """Transitions over all shards; the oldest segments go first (Horgan et al. 2018: 2M)."""
    max_bytes: Annotated[int | None, positive(2**60)] = None
    """Compressed bytes over all shards; None: half of the machine's memory."""
    min_size: Annotated[int, counted(_TRANSITIONS)] = 50_000
    """Transitions inserted before learning starts (Horgan et al. 2018)."""
    priority_exponent: Annotated[float, SHARE] = 0.6
    """Alpha of prioritised sampling; 0 is uniform replay (Schaul et al. 2016, equation 1)."""
    importance_exponent: Annotated[float, SHARE] = 0.4
    """Beta of the importance weights (Schaul et al. 2016, section 3.4)."""
    samples_per_insert: Annotated[float | Literal["off"], positive(1e6)] = 8.0
    """Times a transition is trained on, on average (Mnih et al. 2015: 8); `off`: no limiter."""
    band: Annotated[float | None, positive(1e18)] = None
    """Samples the ratio may be off by, to either side; None: four times the least legal band."""
    shards: Annotated[int, counted(_MAX_SHARDS)] = 1
    """Replay servers."""
    frames_per_block: Annotated[int, counted(100_000)] = 4
    """Frames per lz4 block; docs/decisions.md has the table of bytes and decode rates."""
    order: Literal["random", "sequential"] = "random"
    """`sequential`: a batch is a run of neighbours in order of insertion, from a random start."""


@dataclass(frozen=True)
class LearnerConfig:
    """Gradient updates."""

    batch_size: Annotated[int, counted(10**7)] = 512
    """Transitions per learner step."""
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    """`rmsprop` is the centred one of Graves 2013 unless `rmsprop_centered` is off."""
    learning_rate: Annotated[float, positive(1e38)] = 0.00025 / 4
    """Step size (Horgan et al. 2018, appendix C)."""
    optimizer_epsilon: Annotated[float, positive(1e300)] = 1.5e-7
    """Added to the denominator (Horgan et al. 2018, appendix C)."""
    rmsprop_decay: Annotated[float, SHARE] = 0.95
    """Decay of the squared-gradient average (Horgan et al. 2018, appendix C)."""
    rmsprop_centered: bool = True
    """Subtract the squared mean gradient."""
    loss: Literal["huber", "mse"] = "huber"
    """Huber with delta 1, or half the squared TD error."""
    max_grad_norm: Annotated[float | None, positive(1e30)] = 40.0
    """Clip the gradient's global norm (Wang et al. 2016: 10, Horgan et al. 2018: 40); None: off."""
    max_grad_value: Annotated[float | None, positive(1e30)] = None
    """Clip each gradient element to +- this; None: off."""
    target_period_learner_steps: Annotated[int, counted(_STEPS)] = 2_500
    """Copy online to target after so many learner steps (Horgan et al. 2018, appendix C)."""
    target_period_episodes: Annotated[int | None, counted(_STEPS)] = None
    """Copy it whenever so many more training games ended instead; None: by learner steps."""
    publish_period_learner_steps: Annotated[int, counted(_STEPS)] = 10
    """Offer weights to the actors after so many learner steps, and at most once a second."""
    prefetch_batches: Annotated[int, counted(1_000)] = 2
    """Decoded batches kept ready, on the device, while the learner steps."""
    decode_threads: Annotated[int, counted(1_000)] = 1
    """Threads that decompress. On 2 cores a second one halved the rate: docs/decisions.md."""
    device: Annotated[Literal["auto", "cpu", "cuda"], arg(aliases=["--device"])] = "auto"
    """`auto`: CUDA when there is one."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the step; `auto`: where that works and the run is not serial; `on`: or end."""
    precision: Precision = "float32"
    """Of the products in the hidden layers: bfloat16 is faster on CPUs with AMX or AVX512-BF16, and
    slower on others. Weights, action values, targets, loss and optimiser stay float32."""
    threads: Annotated[int, from_zero(1_000)] = 0
    """Torch threads of the learner; 0: the cores that actors and replay leave, one at least, and
    one in a serial run, whatever the machine: their number decides the last digits."""


@dataclass(frozen=True)
class EvaluatorConfig:
    """Greedy whole games, beside training."""

    enabled: bool = True
    """Whether the run has an evaluator."""
    every_minutes: Annotated[float, positive(_MINUTES)] = 5.0
    """From the start of one evaluation to the start of the next; a serial run counts 6,000 agent
    and learner steps as a minute."""
    episodes: Annotated[int, EVALUATION_GAMES] = 5
    """Games per evaluation."""
    epsilon: Annotated[float, SHARE] = 0.001
    """Exploration while evaluating; above 0, or Breakout waits for ever for its FIRE."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What survives the process."""

    every_minutes: Annotated[float, positive(_MINUTES)] = 1.0
    """Between checkpoints, which is what a dead learner forgets at most; one more at the end.
    A serial run counts 6,000 agent and learner steps as a minute."""
    keep: Annotated[int, counted(10**6)] = 3
    """Newest checkpoints kept, besides `best.pt`."""
    replay: bool = True
    """Whether replay is saved, too; else a resumed run fills it anew before it learns."""


@dataclass(frozen=True)
class HealthConfig:
    """What is done about processes that die or hang."""

    hang_s: Annotated[float, positive(60 * _MINUTES)] = 60.0
    """Silence after which a process counts as hung: it is killed, and another takes its place."""


@dataclass(frozen=True)
class LogConfig:
    """Where scalars go, beside TensorBoard's events."""

    jsonl: bool = False
    """Write them to `scalars.jsonl` in the run's folder, too: a line of JSON for each row, with
    `frames`, `time_s` (seconds since 1970) and a value or null for each tag. A line with `start`
    for each start of the run: lines above it with more frames than it were played again."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    preset: Annotated[str, arg(metavar="NAME")] = "apex"
    """Named configuration to start from; `launch.py presets` lists them."""
    total_frames: Annotated[int, counted(_STEPS)] = 50_000_000
    """Emulator frames after which the run is done; a frame counts once replay has accepted it."""
    total_episodes: Annotated[int | None, counted(_STEPS)] = None
    """Training games after which the run is done, if the frames are not first; None: no limit."""
    stop_at_return: Annotated[float | None, _RETURN] = None
    """Raw return at which the run is done before its frames are; None: only the frames count."""
    stop_at_return_of: Literal["train", "eval", "either"] = "either"
    """Whose: the mean of the last 100 training games, of one evaluation, or whichever is first."""
    seed: Annotated[int, from_zero(2**63 - 1)] = 1
    """Every generator of the run derives from it."""
    env: EnvConfig = field(default_factory=EnvConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def num_environments(self) -> int:
        """N * E."""
        return self.actor.count * self.actor.envs

    @property
    def transitions_per_push(self) -> int:
        """Most transitions in one push: every environment's segment closes on the same step."""
        return self.actor.envs * self.actor.segment_transitions

    @property
    def samples_per_insert(self) -> float | None:
        """The ratio to hold, or None where the rate limiter is off."""
        ratio = self.replay.samples_per_insert
        return None if ratio == "off" else ratio

    @property
    def least_band(self) -> float:
        """Least band with which neither side can wait for ever (see replay.rate_limiter)."""
        ratio = self.samples_per_insert or 0.0
        return 2.0 * max(self.learner.batch_size, ratio * self.transitions_per_push)

    @property
    def band(self) -> float:
        """The band in force."""
        return 4.0 * self.least_band if self.replay.band is None else self.replay.band

    def problems(self) -> list[str]:
        """Return one line per impossible value: flag, value, rule. Empty when all is sound.

        How values must stand to each other is only asked where each is possible alone.
        """
        broken = dict(_broken_bounds(self))
        lines = [f"--{flag} {problem}" for flag, problem in broken.items()]
        for relation in _RELATIONS:
            if broken.keys().isdisjoint(relation.flags) and (rule := relation.broken_rule(self)):
                flag = relation.flags[0]
                lines.append(f"--{flag} {shown(_value(self, flag))}: must be {rule}")
        return lines


class _Relation(NamedTuple):
    """What values ask of each other.

    Fields:
      flags: of the values; the first is the one that is named.
      broken_rule: returns what it must be and is not, "" if it is.
    """

    flags: tuple[str, ...]
    broken_rule: Callable[[Config], str]


def _goal_is_given(config: Config) -> str:
    is_moot = config.stop_at_return is None and config.stop_at_return_of != "either"
    return "either, where no --stop-at-return is given" if is_moot else ""


def _goal_is_measured(config: Config) -> str:
    evaluates = config.evaluator.enabled or config.stop_at_return_of != "eval"
    if evaluates or config.stop_at_return is None:
        return ""
    return "train, where --evaluator.no-enabled leaves no evaluations"


def _batch_fits(config: Config) -> str:
    batch = config.learner.batch_size
    return "" if config.replay.min_size >= batch else f">= the batch size, {batch}"


def _least_size_fits(config: Config) -> str:
    capacity = config.replay.capacity
    return "" if config.replay.min_size <= capacity else f"<= the capacity, {capacity}"


def _pushes_fit(config: Config) -> str:
    push, shards = config.transitions_per_push, config.replay.shards
    if config.replay.capacity >= push * shards:
        return ""
    return f">= {push * shards}, one push ({push} transitions) for each shard ({shards})"


def _order_fits(config: Config) -> str:
    is_prioritised = config.replay.priority_exponent > 0
    if config.replay.order == "random" or not is_prioritised:
        return ""
    return "random while --replay.priority-exponent is above 0"


def _band_is_wide(config: Config) -> str:
    if config.samples_per_insert is None or config.band >= config.least_band:
        return ""
    least = f"{config.least_band:g}"
    return f">= {least}: 2 * max(batch, samples per insert * transitions per push)"


_PUSH = ("actor.envs", "actor.segment-transitions")
_RELATIONS = (
    _Relation(("stop-at-return-of", "stop-at-return"), _goal_is_given),
    _Relation(("stop-at-return-of", "stop-at-return"), _goal_is_measured),
    _Relation(("replay.min-size", "learner.batch-size"), _batch_fits),
    _Relation(("replay.min-size", "replay.capacity"), _least_size_fits),
    _Relation(("replay.capacity", "replay.shards", *_PUSH), _pushes_fit),
    _Relation(("replay.order", "replay.priority-exponent"), _order_fits),
    _Relation(
        ("replay.band", "replay.samples-per-insert", "learner.batch-size", *_PUSH), _band_is_wide
    ),
)


def _value(config: Config, flag: str) -> object:
    return functools.reduce(getattr, flag.replace("-", "_").split("."), config)


def _broken_bounds(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (flag, value and rule) of what is outside the bounds that stand beside its field."""
    for prefix, part in _parts(config):
        for name, bounds in _bounds(part.__class__).items():
            flag, value = f"{prefix}{name}".replace("_", "-"), getattr(part, name)
            if isinstance(value, tuple):
                rules = {bounds.broken_by(number) for number in value} or {">= 1"}
                if rule := max(rules):
                    yield flag, f"{shown(value)}: must be one or more widths {rule}"
                elif len(value) > _MOST_LAYERS:
                    yield flag, f"{shown(value)}: must be at most {_MOST_LAYERS} widths"
            elif isinstance(value, int | float) and (rule := bounds.broken_by(value)):
                yield flag, f"{shown(value)}: must be {rule}"
        for own in dataclasses.fields(part):
            text = getattr(part, own.name)
            # It is printed and stored: not every text can be.
            if isinstance(text, str) and not (len(text) <= _MOST_TEXT and text.isprintable()):
                flag = f"{prefix}{own.name}".replace("_", "-")
                yield flag, f"{shown(text)}: must be printable text of <= {_MOST_TEXT} characters"


def _parts(config: Config) -> Iterator[tuple[str, Any]]:
    yield "", config
    for own in dataclasses.fields(config):
        if dataclasses.is_dataclass(part := getattr(config, own.name)):
            yield f"{own.name}.", part


@functools.cache
def _bounds(part: type[object]) -> dict[str, Bounds]:
    """Return the bounds of a part's fields by name."""
    hints = typing.get_type_hints(part, include_extras=True)
    return {
        name: bounds
        for name, hint in hints.items()
        for bounds in getattr(hint, "__metadata__", ())
        if isinstance(bounds, Bounds)
    }
