"""The processes that remember: segments, priorities, the rate limiter, and the client that talks to them."""
