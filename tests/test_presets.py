"""Presets: sound, told apart, and pinned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from common.config import Config
from common.config_file import override, to_dict
from common.presets import PRESETS, Preset


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_sound_and_carries_its_own_name(name: str) -> None:
    preset = PRESETS[name]
    assert preset.config.problems() == []
    assert preset.config.preset == name


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_preset_names_its_source(preset: Preset) -> None:
    assert len(preset.source) > 40
    assert "\n" not in preset.source


def test_presets_differ_in_more_than_their_name() -> None:
    nameless = [dataclasses.replace(p.config, preset="") for p in PRESETS.values()]
    assert len({repr(config) for config in nameless}) == len(PRESETS)


def test_apex_is_the_default() -> None:
    assert PRESETS["apex"].config == Config()


PINNED = yaml.safe_load((Path(__file__).parent / "presets.yaml").read_text())


def test_every_preset_is_pinned() -> None:
    assert set(PINNED) == set(PRESETS)
    leaves = [name for part in PINNED["apex"].values() if isinstance(part, dict) for name in part]
    assert len(leaves) > 60


@pytest.mark.parametrize("name", PRESETS)
def test_no_setting_of_a_preset_changes_unnoticed(name: str) -> None:
    """What was searched, run and recorded under docs/experiments holds for these values."""
    pinned = override(Config(), PINNED["apex"], "apex")
    assert to_dict(override(pinned, PINNED[name], name)) == to_dict(PRESETS[name].config)
    assert to_dict(pinned) == PINNED["apex"]  # nothing is left to the defaults
