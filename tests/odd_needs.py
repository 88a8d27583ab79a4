"""A module of environments that needs a package which is not here."""

import no_such_engine  # type: ignore[import-not-found]  # noqa: F401
