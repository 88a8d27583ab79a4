"""What Ray reads from the environment once, when it is imported.

Import this module before anything that imports Ray.
"""

from __future__ import annotations

import os

# Whoever is let in may run code, so every role asks for a token (docs/cluster.md). A cluster
# without authentication says so itself: RAY_AUTH_MODE=disabled in the shell.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
