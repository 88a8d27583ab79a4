"""One file per hot path, each with its floor beside it; `launch.py bench` runs them."""
