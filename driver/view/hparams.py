"""A run's settings as TensorBoard's HPARAMS tab wants them: one message in the run's own events.

TensorBoard finds the settings by which runs differ, and takes each scalar's last value as what came
of them. A second folder beside the run's is what other writers make for this; it is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb

from common.config import Config
from common.config_file import to_dict


def hparams_summary(config: Config, run: str) -> Summary:
    """Return the message that says what the run's settings are.

    Args:
      config: the settings, each a column of the tab; one that is None is an empty cell.
      run: name of the run's folder. TensorBoard takes the mean over runs of one name.
    """
    # A folder may have any bytes for a name; a message holds UTF-8 alone.
    name = run.encode(errors="backslashreplace").decode()
    return hparams_pb(dict(_flat(to_dict(config), "")), trial_id=name)


def _flat(nested: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, bool | float | str]]:
    """Yield each setting by its dotted name."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", " ".join(map(str, value))
        elif value is not None:
            yield f"{prefix}{key}", value
