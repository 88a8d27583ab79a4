"""The processes that play: environments, policy, n-step transitions, segments."""
