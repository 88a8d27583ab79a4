"""The tags that every run writes; spelled out here, so that renaming a constant fails a test."""

# All of the design, section 4, but the shares of time, whose phases differ by role, and the
# human-normalised score, which only games with published scores have.
DESIGN_TAGS = {
    "throughput/env_frames_per_s",
    "throughput/learner_steps_per_s",
    "throughput/transitions_sampled_per_s",
    "throughput/transitions_inserted_per_s",
    "train/episode_return",
    "eval/episode_return",
    "learner/td_loss",
    "learner/q_mean",
    "learner/grad_norm",
    "replay/transitions",
    "replay/bytes",
    "replay/samples_per_insert",
    "replay/stale_priority_updates",
    "actors/policy_lag_learner_steps",
    "actors/epsilon",
    "health/actor_restarts",
    "health/replay_restarts",
    "health/learner_restarts",
}
