"""One run, from the command to its result."""
