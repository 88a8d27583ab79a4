"""What becomes of Python's warnings: they are shown or not, but end nothing."""

from __future__ import annotations

import os
import warnings


def raise_no_warnings() -> None:
    """Forget that `PYTHONWARNINGS` or `-W` made warnings errors, here and in children.

    Whoever sets it means programs of their own. Here it would end a run at what PyTorch says of
    its compiler, and fill the end of one with what Ray leaves open.
    """
    warnings.filters[:] = [one for one in warnings.filters if one[0] != "error"]  # type: ignore[index]
    if given := os.environ.get("PYTHONWARNINGS"):
        kept = [
            one for one in given.split(",") if not "error".startswith(one.split(":")[0].strip())
        ]
        os.environ["PYTHONWARNINGS"] = ",".join(kept)
