"""A module of environments that cannot be imported."""

raise LookupError("no licence for these games")
