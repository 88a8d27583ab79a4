"""What Ray reads from the environment once, when it is imported.

Import this module before anything that imports Ray.
"""

from __future__ import annotations

import os

# Whoever is let in may run code, so every role asks for a token (docs/cluster.md). A cluster
# without authentication says so itself: RAY_AUTH_MODE=disabled in the shell.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Under `uv run` Ray would build the environment anew for every process, from a project that it
# looks for in the current folder. Troop's processes share the driver's.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# A busy machine takes its time. These are waits of Ray's processes for each other; how long the
# driver waits for them, driver/ray_session.py decides, and asks Ray in short steps.
os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")  # noqa: SIM112
os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "180")
os.environ["RAY_raylet_start_wait_time_s"] = "2"  # noqa: SIM112
