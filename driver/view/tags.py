"""The tags of a run: the names under which its scalars stand in TensorBoard."""

from __future__ import annotations

RETURN_GAMES = 100
"""Games that the mean training return is taken over: in its scalar, on the console, in plots."""

ENV_FRAMES_PER_S = "throughput/env_frames_per_s"
LEARNER_STEPS_PER_S = "throughput/learner_steps_per_s"
TRANSITIONS_SAMPLED_PER_S = "throughput/transitions_sampled_per_s"
TRANSITIONS_INSERTED_PER_S = "throughput/transitions_inserted_per_s"
TRAIN_EPISODE_RETURN = "train/episode_return"
TRAIN_EPISODE_AGENT_STEPS = "train/episode_agent_steps"
TRAIN_MEAN_EPISODE_RETURN = "train/mean_episode_return"
EVAL_EPISODE_RETURN = "eval/episode_return"
EVAL_HUMAN_NORMALIZED_SCORE = "eval/human_normalized_score"
LEARNER_TD_LOSS = "learner/td_loss"
LEARNER_Q_MEAN = "learner/q_mean"
LEARNER_DROPPED_PRIORITY_UPDATES = "learner/dropped_priority_updates"
REPLAY_TRANSITIONS = "replay/transitions"
REPLAY_BYTES = "replay/bytes"
REPLAY_SAMPLES_PER_INSERT = "replay/samples_per_insert"
REPLAY_STALE_PRIORITY_UPDATES = "replay/stale_priority_updates"
REPLAY_REFUSED_SEGMENTS = "replay/refused_segments"
REPLAY_EVICTED_TRANSITIONS = "replay/evicted_transitions"
REPLAY_LOST_TRANSITIONS = "replay/lost_transitions"
ACTORS_POLICY_LAG_LEARNER_STEPS = "actors/policy_lag_learner_steps"
ACTORS_EPSILON = "actors/epsilon"


def episode_return_quartile_tag(ladder_position: float) -> str:
    """Return the tag of whole-game returns for the epsilon quartile an environment stands in.

    Args:
      ladder_position: in [0, 1). The quarter that explores most is 1, the greediest is 4.
    """
    if not 0 <= ladder_position < 1:
        raise ValueError(f"Expect 0 <= `ladder_position` < 1, actually: {ladder_position}")
    return f"{TRAIN_EPISODE_RETURN}_epsilon_quartile_{1 + int(4 * ladder_position)}"


def learner_tag(metric: str) -> str:
    """Return the tag of one of the learner's metrics."""
    return f"learner/{metric}"


def phase_share_tag(role: str, phase: str) -> str:
    """Return the tag for the share of a role's wall time that one phase took."""
    return f"time/{role}_{phase}_share"


def restarts_tag(role: str) -> str:
    """Return the tag that counts how often workers of a role were recreated."""
    return f"health/{role}_restarts"


def save_held_tag(role: str) -> str:
    """Return the tag of the seconds for which the newest save kept a worker from its work."""
    return f"health/{role}_save_held_s"


def save_tag(role: str) -> str:
    """Return the tag of the seconds that the newest save took to write, beside the work."""
    return f"health/{role}_save_s"
