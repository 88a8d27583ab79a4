"""What matplotlib reads once, when it is imported: no settings but its own.

`MPLBACKEND`, or a file `matplotlibrc` in the working directory or the user's folders, may name what
does not exist here, or set text by a LaTeX that is not installed.

Import this module before anything that imports matplotlib.
"""

from __future__ import annotations

import os


def _import_matplotlib() -> None:
    kept = {name: os.environ.pop(name, None) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
    here = os.open(".", os.O_PATH)  # even where that folder was removed
    try:
        os.environ["MATPLOTLIBRC"] = os.devnull  # nothing is set there
        os.chdir("/")  # the working directory would come first
        import matplotlib  # noqa: F401
    finally:
        os.fchdir(here)
        os.close(here)
        del os.environ["MATPLOTLIBRC"]
        os.environ.update({name: value for name, value in kept.items() if value is not None})


_import_matplotlib()
