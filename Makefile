# `make check` is what CI runs, in the environment you are in; `make ci` is CI itself, in a fresh
# one.
.PHONY: check lint types test slow format ci

check: lint types test

lint:
	ruff check .
	ruff format --check .
	codespell

types:
	mypy

test:
	python -m pytest

slow:
	python -m pytest -m slow

format:
	ruff check --fix .
	ruff format .

ci:
	.ci/run
