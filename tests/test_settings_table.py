from __future__ import annotations

import dataclasses
import re

from common.config import Config
from common.config_file import to_dict
from common.presets import PRESETS
from driver.view.settings_table import settings_table


def test_table_holds_every_setting_with_its_value() -> None:
    text = re.sub(r"\s+", " ", settings_table(Config()))
    for part, settings in to_dict(Config()).items():
        names = settings if isinstance(settings, dict) else {part: settings}
        for name in names:
            assert re.search(rf"\b{name} \S", text), name
    for shown in (
        "total_frames 50,000,000, total_episodes none, stop_at_return none",
        "gamma 0.99",
        "dueling on",
        "hidden 256 x 256",
        "learning_rate 6.25e-05",
        "rmsprop_centered on",
    ):
        assert shown in text


def test_table_is_short_and_keeps_each_setting_on_one_line() -> None:
    for preset in PRESETS.values():
        lines = settings_table(preset.config).splitlines()
        assert len(lines) <= 25
        assert max(map(len, lines)) <= 100
        text = "\n".join(lines)
        for name, value in dataclasses.asdict(preset.config.learner).items():
            shown = "on" if value is True else "off" if value is False else None
            if shown is not None:
                assert f"{name} {shown}" in text
        assert f"learning_rate {preset.config.learner.learning_rate}" in text


def test_each_part_begins_a_line_with_its_name() -> None:
    lines = settings_table(Config()).splitlines()
    named = [line.split()[0] for line in lines if not line.startswith("   ")]
    parts = [name for name, value in to_dict(Config()).items() if isinstance(value, dict)]
    assert named == ["run", *parts]
