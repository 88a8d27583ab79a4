"""docs/architecture.md: every file and name that it speaks of is there, and every room is named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def places(page: str) -> list[str]:
    """Return what a page speaks of as `file.py` or `file.py:Name.method`."""
    return re.findall(r"`([\w/]+\.py(?::[\w.]+)?)`", page)


def trouble(place: str) -> str:
    """Return what is wrong with such a place, "" if nothing is."""
    path, _, name = place.partition(":")
    if not (ROOT / path).is_file():
        return f"{path} is not there"
    body = ast.parse((ROOT / path).read_text()).body
    for part in name.split(".") if name else []:
        node = next((node for node in body if part in _names(node)), None)
        if node is None:
            return f"{path} has no {name}"
        body = node.body if isinstance(node, ast.ClassDef) else []
    return ""


def _names(node: ast.stmt) -> set[str]:
    """Return what a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("place", sorted(set(places(PAGE))))
def test_place_that_the_page_names_is_there(place: str) -> None:
    assert not trouble(place)


def test_place_that_is_not_there_is_found() -> None:
    page = "`learner/gone.py`, `learner/learner.py:Teacher`, `learner/learner.py:Learner.teach`"
    assert all(map(trouble, places(page)))
    assert len(places(page)) == 3
    assert not trouble("learner/learner.py:Learner.step")
    assert not trouble("common/torsos.py:TORSOS")


def test_page_names_every_room() -> None:
    picture = PAGE.partition("```")[2].partition("```")[0]
    rooms = {path.parent for path in ROOT.glob("*/__init__.py")} | {ROOT / "driver" / "view"}
    rooms.discard(ROOT / "benchmarks")
    named = {room for room in rooms if f"{room.relative_to(ROOT)}/ " in picture}
    assert named == rooms
