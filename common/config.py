"""All hyperparameters: frozen dataclasses, one per part, and `Config` that holds them.

The only home of defaults. Order of precedence: preset < `--config` file < flag. `problems()` names
every impossible value at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

# An insertion id has 7 bits for the shard (replay.storage).
_MAX_SHARDS = 128


@dataclass(frozen=True)
class EnvConfig:
    """The environment and how it is seen."""

    id: Annotated[str, arg(aliases=["--env"], metavar="ID")] = "pong"
    """`pong`, `ALE/Pong-v5`, `PongNoFrameskip-v4`, a gymnasium id or `CartPole-v1-pixels`."""
    sticky_actions: float | None = None
    """Chance that the last action is repeated; None: as the id says (0.25 for ALE/*-v5 and
    *-v0, else 0)."""
    full_action_space: bool = False
    """All joystick actions that the console has for the game instead of the game's own: 18, or 9
    (Machado et al. 2018, section 5)."""
    noop_max: int = 30
    """Most random no-ops at a game's start, in emulator frames (Mnih et al. 2015, Methods: 30)."""
    fire_reset: bool = False
    """Press FIRE for one frame at a game's start on Atari, as ale-py does; the classic wrappers
    (OpenAI Baselines) hold it for a whole agent step, and press again after a lost life."""
    life_loss_terminates: bool = True
    """In training, a lost life ends the value, not the game (Mnih et al. 2015, Methods)."""
    life_loss_reward: float = 0.0
    """Learned with each lost life, before clipping; no part of any return that is reported."""
    clip_rewards: bool | None = None
    """Learn from rewards clipped to [-1, 1] (Mnih et al. 2015); None: on Atari and nowhere else;
    reported returns are raw."""
    action_repeat_frames: int = 4
    """Emulator frames per agent step on Atari. Of the last two the maximum is taken, after they are
    grey, as gymnasium does; Mnih et al. 2015 and the classic wrappers take it before, in colour."""
    stack: int = 4
    """Frames in an observation on Atari; others use 1, and CartPole's pixels 2."""
    max_game_frames: int = 108_000
    """Emulator frames after which a game is truncated, 30 minutes (Hessel et al. 2018)."""

    def clips_rewards(self, *, is_atari: bool) -> bool:
        """Return whether rewards are clipped, where the id names a game of Atari or does not."""
        return is_atari if self.clip_rewards is None else self.clip_rewards


@dataclass(frozen=True)
class AgentConfig:
    """What actors and learner must share: the network and the n-step target."""

    network: Literal["nature_cnn", "nips_cnn", "pixel_cnn", "mlp"] = "nature_cnn"
    """`nature_cnn`: 32@8s4, 64@4s2, 64@3s1, 512 (Mnih et al. 2015); `nips_cnn`: 16@8s4, 32@4s2, 256
    (Mnih et al. 2013), for learning on CPUs; `pixel_cnn`: 16, 32, 32, each @5s2 with batch
    normalisation, of the frames' differences; `mlp`: for vectors."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layer widths of `mlp`."""
    dueling: bool = True
    """Value and advantage streams (Wang et al. 2016, equation 9)."""
    double: bool = True
    """Choose the bootstrap action with the online network (van Hasselt et al. 2016, equation 4)."""
    n_step: int = 3
    """Agent steps in a return (Horgan et al. 2018, appendix C)."""
    gamma: float = 0.99
    """Discount per agent step."""


@dataclass(frozen=True)
class ActorConfig:
    """The processes that play."""

    count: Annotated[int, arg(aliases=["--actors"])] = 8
    """N, actor processes."""
    envs: Annotated[int, arg(aliases=["--envs-per-actor"])] = 8
    """E, environments per actor, stepped as one C++ vector."""
    epsilon_schedule: Literal["ladder", "exponential"] = "ladder"
    """`ladder`: one rate per environment (Horgan et al. 2018, section 4); `exponential`: decays."""
    epsilon: float = 0.4
    """Base of the ladder."""
    epsilon_alpha: float = 7.0
    """Exponent of the ladder: eps ** (1 + alpha * i / (N*E - 1))."""
    epsilon_start: float = 1.0
    """Exponential schedule at agent step 0."""
    epsilon_end: float = 0.05
    """Exponential schedule in the limit."""
    epsilon_decay_agent_steps: float = 30_000.0
    """Exponential schedule: agent steps of the run until 1/e of the way to the end is left."""
    segment_transitions: int = 50
    """Transitions per pushed segment (the B = 50 of Horgan et al. 2018)."""
    weights_poll_agent_steps: int = 400
    """An actor asks for newer weights after so many of its own agent steps (Horgan et al. 2018: 400
    frames, about 2.8 s of an actor)."""
    push_window: int = 2
    """Pushes an actor may have in flight."""
    cpus: float | Literal["auto"] = "auto"
    """CPUs that Ray reserves for an actor; `auto`: 1 on a cluster, else its share of the cores."""


@dataclass(frozen=True)
class ReplayConfig:
    """What is remembered, and how fast it may be used."""

    capacity: int = 2_000_000
    """Transitions over all shards; the oldest segments go first (Horgan et al. 2018: 2M)."""
    max_bytes: int | None = None
    """Compressed bytes over all shards; None: half of the machine's memory."""
    min_size: int = 50_000
    """Transitions inserted before learning starts (Horgan et al. 2018)."""
    priority_exponent: float = 0.6
    """Alpha of prioritised sampling; 0 is uniform replay (Schaul et al. 2016, equation 1)."""
    importance_exponent: float = 0.4
    """Beta of the importance weights (Schaul et al. 2016, section 3.4)."""
    samples_per_insert: float | Literal["off"] = 8.0
    """Times a transition is trained on, on average (Mnih et al. 2015: 8); `off`: no limiter."""
    band: float | None = None
    """Samples the ratio may be off by, to either side; None: four times the least legal band."""
    shards: int = 1
    """Replay servers."""
    frames_per_block: int = 4
    """Frames per lz4 block; docs/decisions.md has the table of bytes and decode rates."""
    order: Literal["random", "sequential"] = "random"
    """`sequential`: a batch is a run of neighbours in order of insertion, from a random start."""


@dataclass(frozen=True)
class LearnerConfig:
    """Gradient updates."""

    batch_size: int = 512
    """Transitions per learner step."""
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    """`rmsprop` is the centred one of Graves 2013 unless `rmsprop_centered` is off."""
    learning_rate: float = 0.00025 / 4
    """Step size (Horgan et al. 2018, appendix C)."""
    optimizer_epsilon: float = 1.5e-7
    """Added to the denominator (Horgan et al. 2018, appendix C)."""
    rmsprop_decay: float = 0.95
    """Decay of the squared-gradient average (Horgan et al. 2018, appendix C)."""
    rmsprop_centered: bool = True
    """Subtract the squared mean gradient."""
    loss: Literal["huber", "mse"] = "huber"
    """Huber with delta 1, or half the squared TD error."""
    max_grad_norm: float | None = 40.0
    """Clip the gradient's global norm (Wang et al. 2016: 10, Horgan et al. 2018: 40); None: off."""
    max_grad_value: float | None = None
    """Clip each gradient element to +- this; None: off."""
    target_period_learner_steps: int = 2_500
    """Copy online to target after so many learner steps (Horgan et al. 2018, appendix C)."""
    target_period_episodes: int | None = None
    """Copy it whenever so many more training games ended instead; None: by learner steps."""
    publish_period_learner_steps: int = 10
    """Offer weights to the actors after so many learner steps, and at most once a second."""
    prefetch_batches: int = 2
    """Decoded batches kept ready, on the device, while the learner steps."""
    decode_threads: int = 1
    """Threads that decompress. On 2 cores a second one halved the rate: docs/decisions.md."""
    device: Annotated[Literal["auto", "cpu", "cuda"], arg(aliases=["--device"])] = "auto"
    """`auto`: CUDA when there is one."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the step; `auto`: where there is a C++ compiler and the run is not serial."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products in the hidden layers: bfloat16 is faster on CPUs with AMX or AVX512-BF16, and
    slower on others. Weights, action values, targets, loss and optimiser stay float32."""
    threads: int = 0
    """Torch threads of the learner; 0: the cores that actors and replay leave, one at least."""


@dataclass(frozen=True)
class EvaluatorConfig:
    """Greedy whole games, beside training."""

    enabled: bool = True
    """Whether the run has an evaluator."""
    every_minutes: float = 5.0
    """From the start of one evaluation to the start of the next."""
    episodes: int = 5
    """Games per evaluation."""
    epsilon: float = 0.001
    """Exploration while evaluating; above 0, or Breakout waits for ever for its FIRE."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What survives the process."""

    every_minutes: float = 1.0
    """Between checkpoints, which is what a dead learner forgets at most; one more at the end."""
    keep: int = 3
    """Newest checkpoints kept, besides `best.pt`."""
    replay: bool = True
    """Whether replay is saved, too; else a resumed run fills it anew before it learns."""


@dataclass(frozen=True)
class HealthConfig:
    """What is done about processes that die or hang."""

    hang_s: float = 60.0
    """Silence after which a process counts as hung: it is killed, and another takes its place."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    preset: Annotated[str, arg(metavar="NAME")] = "apex"
    """Named configuration to start from; `launch.py presets` lists them."""
    total_frames: int = 50_000_000
    """Emulator frames after which the run is done; a frame counts once replay has accepted it."""
    total_episodes: int | None = None
    """Training games after which the run is done, if the frames are not first; None: no limit."""
    stop_at_return: float | None = None
    """Raw return at which the run is done before its frames are; None: only the frames count."""
    stop_at_return_of: Literal["train", "eval", "either"] = "either"
    """Whose: the mean of the last 100 training games, of one evaluation, or whichever is first."""
    seed: int = 1
    """Every generator of the run derives from it."""
    env: EnvConfig = field(default_factory=EnvConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)

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

        How two values must stand to each other is only asked where each is possible alone.
        """
        found: list[str] = []

        def expect(flag: str, value: object, rule: str, holds: bool) -> None:
            if not holds:
                found.append(f"--{flag} {value}: must be {rule}")

        env, actor, replay, learner = self.env, self.actor, self.replay, self.learner
        counts = {
            "total-frames": self.total_frames,
            "env.action-repeat-frames": env.action_repeat_frames,
            "env.stack": env.stack,
            "env.max-game-frames": env.max_game_frames,
            "agent.n-step": self.agent.n_step,
            "actor.count": actor.count,
            "actor.envs": actor.envs,
            "actor.segment-transitions": actor.segment_transitions,
            "actor.weights-poll-agent-steps": actor.weights_poll_agent_steps,
            "actor.push-window": actor.push_window,
            "replay.capacity": replay.capacity,
            "replay.min-size": replay.min_size,
            "replay.shards": replay.shards,
            "replay.frames-per-block": replay.frames_per_block,
            "learner.batch-size": learner.batch_size,
            "learner.target-period-learner-steps": learner.target_period_learner_steps,
            "learner.publish-period-learner-steps": learner.publish_period_learner_steps,
            "learner.prefetch-batches": learner.prefetch_batches,
            "learner.decode-threads": learner.decode_threads,
            "evaluator.episodes": self.evaluator.episodes,
            "checkpoint.keep": self.checkpoint.keep,
        }
        for flag, count in counts.items():
            expect(flag, count, ">= 1", count >= 1)
        episodes = {
            "total-episodes": self.total_episodes,
            "learner.target-period-episodes": learner.target_period_episodes,
        }
        for flag, limit in episodes.items():
            expect(flag, limit, ">= 1", limit is None or limit >= 1)
        punishment = env.life_loss_reward
        expect("env.life-loss-reward", punishment, "finite and <= 0", -math.inf < punishment <= 0)
        expect("env.stack", env.stack, "<= 255, the depth a segment can hold", env.stack <= 255)
        may_be_zero = {
            "seed": self.seed,
            "env.noop-max": env.noop_max,
            "learner.threads": learner.threads,
        }
        for flag, count in may_be_zero.items():
            expect(flag, count, ">= 0", count >= 0)
        alpha = actor.epsilon_alpha
        expect("actor.epsilon-alpha", alpha, "finite and >= 0", 0 <= alpha < math.inf)
        positive = {
            "actor.cpus": None if actor.cpus == "auto" else actor.cpus,
            "actor.epsilon-decay-agent-steps": actor.epsilon_decay_agent_steps,
            "replay.max-bytes": replay.max_bytes,
            "replay.samples-per-insert": self.samples_per_insert,
            "replay.band": replay.band,
            "learner.learning-rate": learner.learning_rate,
            "learner.optimizer-epsilon": learner.optimizer_epsilon,
            "learner.max-grad-norm": learner.max_grad_norm,
            "learner.max-grad-value": learner.max_grad_value,
            "evaluator.every-minutes": self.evaluator.every_minutes,
            "checkpoint.every-minutes": self.checkpoint.every_minutes,
            "health.hang-s": self.health.hang_s,
        }
        for flag, value in positive.items():
            expect(flag, value, "finite and > 0", value is None or 0 < value < math.inf)
        shares = {
            "env.sticky-actions": env.sticky_actions,
            "replay.priority-exponent": replay.priority_exponent,
            "replay.importance-exponent": replay.importance_exponent,
            "agent.gamma": self.agent.gamma,
            "actor.epsilon": actor.epsilon,
            "actor.epsilon-start": actor.epsilon_start,
            "actor.epsilon-end": actor.epsilon_end,
            "learner.rmsprop-decay": learner.rmsprop_decay,
            "evaluator.epsilon": self.evaluator.epsilon,
        }
        for flag, share in shares.items():
            expect(flag, share, "from 0 to 1", share is None or 0 <= share <= 1)
        goal, whose = self.stop_at_return, self.stop_at_return_of
        expect("stop-at-return", goal, "finite", goal is None or math.isfinite(goal))
        rule = "either, where no --stop-at-return is given"
        expect("stop-at-return-of", whose, rule, goal is not None or whose == "either")
        rule = "train, where --evaluator.no-enabled leaves no evaluations"
        nobody = goal is not None and whose == "eval" and not self.evaluator.enabled
        expect("stop-at-return-of", whose, rule, not nobody)
        hidden = self.agent.hidden
        expect("agent.hidden", hidden, "one or more widths >= 1", min(hidden, default=0) >= 1)

        size, batch, capacity = replay.min_size, learner.batch_size, replay.capacity
        if min(size, batch) >= 1:
            expect("replay.min-size", size, f">= the batch size, {batch}", size >= batch)
        if min(size, capacity) >= 1:
            expect("replay.min-size", size, f"<= the capacity, {capacity}", size <= capacity)
        push, shards = self.transitions_per_push, replay.shards
        expect("replay.shards", shards, f"<= {_MAX_SHARDS}", shards <= _MAX_SHARDS)
        pushes = min(actor.envs, actor.segment_transitions) >= 1
        if pushes and min(capacity, shards) >= 1:
            rule = f">= {push * shards}, one push ({push} transitions) for each shard ({shards})"
            expect("replay.capacity", capacity, rule, capacity >= push * shards)
        ratio, band, least = self.samples_per_insert, replay.band, self.least_band
        if replay.order == "sequential":
            rule = "random while --replay.priority-exponent is above 0"
            expect("replay.order", replay.order, rule, not replay.priority_exponent > 0)
        limited = band is not None and ratio is not None and band > 0 and 0 < ratio < math.inf
        if limited and pushes and batch >= 1:
            rule = f">= {least:g}: 2 * max(batch, samples per insert * transitions per push)"
            expect("replay.band", band, rule, self.band >= least)
        return found
