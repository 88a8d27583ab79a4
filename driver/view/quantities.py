"""Numbers with their units as people read them; "-" where there is nothing to tell."""

from __future__ import annotations

import math


def format_count(value: float) -> str:
    """Return a count or rate for people: 950, 24.1, 1.2M; "-" for NaN."""
    return _scaled(value, ("", "k", "M", "B", "T"))


def format_bytes(value: float) -> str:
    """Return bytes for people, in powers of 1000: 812 B, 3.4 GB; "-" for NaN."""
    return _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    if not math.isfinite(value):
        return "-"
    power = 0
    # 999.5 and not 1000, since that is what rounds to 1000: "1000k" never shows.
    while abs(value) >= 999.5 and power < len(units) - 1:
        value /= 1000
        power += 1
    if power == 0:
        return f"{value:.3g}{units[0]}"
    return f"{value:.{1 if abs(value) < 99.95 else 0}f}{units[power]}"


def format_duration(seconds: float) -> str:
    """Return a time span by its two largest units: 45 s, 6 h 41 min; "-" for NaN or infinity."""
    if not math.isfinite(seconds):
        return "-"
    left = max(0, round(seconds))
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    largest = next((i for i, (_, size) in enumerate(units) if left >= size), len(units) - 1)
    parts: list[str] = []
    for unit, size in units[largest : largest + 2]:
        count, left = divmod(left, size)
        if count or not parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts)


def format_score(value: float) -> str:
    """Return a game's score for people: -3.2, 12,346; "-" for NaN."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def format_percent(share: float) -> str:
    """Return a share as per cent: 60%; "-" for NaN."""
    return f"{100 * share:.0f}%" if math.isfinite(share) else "-"
