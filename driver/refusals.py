"""How a command refuses: a line a problem on stderr, and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from common.config_file import ConfigError
from common.endings import EnvironmentFailed, HostUnfit
from common.schema import one_line
from driver.run_folder import RunFolder
from driver.view.log_file import LogFile

# Whatever a file or a path may hold, a line about it can be read.
_MOST_CHARACTERS = 2_000


def refuse(problems: Sequence[str]) -> NoReturn:
    """Print one line per problem and exit 2."""
    for problem in problems:
        print(f"launch.py: {one_line(problem, _MOST_CHARACTERS)}", file=sys.stderr)
    sys.exit(2)


def lines_of(error: ValueError) -> list[str]:
    """Return a line per problem; a path in it may hold line ends of its own."""
    return error.problems if isinstance(error, ConfigError) else [str(error)]


def words_of(failure: EnvironmentFailed | HostUnfit, folder: RunFolder) -> str:
    """Return the line of a failure whose traceback, if there is one, is put into the folder's log.

    A folder that holds its log alone is as good as new (driver.run_folder).
    """
    if not failure.details:
        return str(failure)
    trouble = LogFile(folder.log).append(failure.details)
    return f"{failure}; {trouble or f'its traceback is in {folder.log}'}"
