"""Legal settings of the rate limiter, drawn at random, for the tests that let it run."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

from replay.rate_limiter import RateLimiter


class Setting(NamedTuple):
    """A limiter's settings, with the largest sample and insert that they must serve."""

    min_size: int
    samples_per_insert: float
    batch: int
    push: int
    band: float

    def limiter(self) -> RateLimiter:
        return RateLimiter(
            min_size=self.min_size, samples_per_insert=self.samples_per_insert, band=self.band
        )


def least_band(samples_per_insert: float, batch: int, push: int) -> float:
    return 2.0 * max(batch, samples_per_insert * push)


@st.composite
def legal_settings(draw: st.DrawFn, most_min_size: int = 2_000_000) -> Setting:
    samples_per_insert = draw(st.one_of(st.floats(0.1, 64.0), st.sampled_from([0.1, 1.0, 8.0])))
    batch, push = draw(st.integers(1, 1024)), draw(st.integers(1, 4000))
    return Setting(
        min_size=draw(st.integers(1, most_min_size)),
        samples_per_insert=samples_per_insert,
        batch=batch,
        push=push,
        band=least_band(samples_per_insert, batch, push)
        * draw(st.sampled_from([1.0, 1.0, 1.3, 4.0])),
    )
