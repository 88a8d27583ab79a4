"""The processes that remember: segments, priorities, the rate limiter; and their clients."""
