"""Watch: who is asked, and who is taken for hung."""

from __future__ import annotations

import math

import pytest

from driver.watch import Watch

ACTOR, SHARD = ("actor", 3), ("replay", 0)


def make_watch() -> Watch:
    return Watch(ask_s=5.0, first_s=100.0, silence_s=30.0)


def test_worker_is_due_once_it_was_silent_for_long_enough() -> None:
    watch = make_watch()
    watch.started(ACTOR, 1_000.0)
    watch.started(SHARD, 1_002.0)
    assert watch.due(1_004.9) == []
    assert watch.due(1_005.0) == [ACTOR]
    assert watch.due(1_007.0) == [ACTOR, SHARD]


def test_worker_that_was_asked_is_not_due_until_it_answers() -> None:
    watch = make_watch()
    watch.started(ACTOR, 0.0)
    watch.asked(ACTOR)
    assert watch.due(50.0) == []
    watch.answered(ACTOR, 49.0)
    assert watch.due(53.9) == []
    assert watch.due(54.0) == [ACTOR]


def test_word_of_a_worker_makes_it_not_due_and_is_no_answer_to_what_was_asked() -> None:
    watch = make_watch()
    watch.started(ACTOR, 0.0)
    watch.heard(ACTOR, 4.0)
    assert watch.due(8.9) == []
    assert watch.due(9.0) == [ACTOR]
    watch.asked(ACTOR)
    watch.heard(ACTOR, 10.0)
    assert watch.due(20.0) == [], "it is asked already"


def test_worker_that_never_did_anything_is_given_the_longer_time() -> None:
    watch = make_watch()
    watch.started(ACTOR, 0.0)
    assert watch.hung(100.0) == {}
    assert watch.hung(101.0) == {ACTOR: 101.0}
    assert (watch.silence_s(ACTOR, 101.0), watch.allowed_s(ACTOR)) == (101.0, 100.0)


@pytest.mark.parametrize("word", ["heard", "answered"])
def test_worker_that_worked_once_is_given_the_shorter_time(word: str) -> None:
    watch = make_watch()
    watch.started(ACTOR, 0.0)
    getattr(watch, word)(ACTOR, 10.0)
    assert watch.hung(40.0) == {}
    assert watch.hung(40.5) == {ACTOR: 30.5}
    assert (watch.silence_s(ACTOR, 40.5), watch.allowed_s(ACTOR)) == (30.5, 30.0)


def test_answer_of_one_that_gets_ready_ends_neither_its_silence_nor_its_longer_time() -> None:
    watch = make_watch()
    watch.started(ACTOR, 0.0)
    watch.asked(ACTOR)
    watch.answered(ACTOR, None)
    assert watch.due(6.0) == [ACTOR]
    assert watch.hung(100.0) == {}
    assert watch.hung(100.1) == {ACTOR: 100.1}


def test_process_that_answers_while_its_loop_stands_still_hangs() -> None:
    watch = make_watch()
    watch.started(ACTOR, 0.0)
    for now in range(10, 40):
        watch.asked(ACTOR)
        watch.answered(ACTOR, 9.0)  # its loop turned then, and never again
        assert watch.hung(float(now)) == ({} if now <= 39 else {ACTOR: now - 9.0})
        assert watch.due(float(now)) == ([ACTOR] if now >= 14 else [])
    assert watch.hung(39.5) == {ACTOR: 30.5}


def test_older_word_takes_nothing_back() -> None:
    watch = make_watch()
    watch.started(ACTOR, 0.0)
    watch.heard(ACTOR, 50.0)
    watch.answered(ACTOR, 20.0)
    assert watch.hung(79.0) == {}


def test_forgotten_worker_is_neither_due_nor_hung_and_its_late_answers_do_nothing() -> None:
    watch = make_watch()
    watch.started(ACTOR, 0.0)
    watch.started(SHARD, 0.0)
    watch.forget(ACTOR)
    watch.forget(ACTOR)
    watch.answered(ACTOR, 1.0)
    watch.heard(ACTOR, 2.0)
    assert watch.due(500.0) == [SHARD]
    assert watch.hung(500.0) == {SHARD: 500.0}


def test_late_word_of_a_dead_worker_does_not_shorten_its_followers_time_to_get_ready() -> None:
    watch = make_watch()
    watch.started(ACTOR, 0.0)
    watch.heard(ACTOR, 10.0)
    watch.forget(ACTOR)
    watch.started(ACTOR, 60.0)
    watch.answered(ACTOR, 11.0)
    watch.heard(ACTOR, 12.0)
    assert watch.hung(160.0) == {}
    assert watch.hung(160.1) == {ACTOR: pytest.approx(100.1)}


def test_worker_that_is_started_again_is_asked_anew() -> None:
    watch = make_watch()
    watch.started(ACTOR, 0.0)
    watch.asked(ACTOR)
    watch.started(ACTOR, 200.0)
    assert watch.hung(200.0) == {}
    assert watch.due(205.0) == [ACTOR]


def test_asking_one_who_is_not_watched_is_a_fault() -> None:
    with pytest.raises(KeyError, match="actor"):
        make_watch().asked(ACTOR)


@pytest.mark.parametrize(
    ("ask_s", "first_s", "silence_s"),
    [
        (0.0, 100.0, 30.0),
        (-1.0, 100.0, 30.0),
        (math.nan, 100.0, 30.0),
        (30.0, 100.0, 30.0),
        (30.0, 20.0, 60.0),
    ],
)
def test_times_without_room_for_an_answer_are_refused(
    ask_s: float, first_s: float, silence_s: float
) -> None:
    match = f"Expect 0 < `ask_s` < `first_s` and `silence_s`, actually: {ask_s}, {first_s}"
    with pytest.raises(ValueError, match=match):
        Watch(ask_s=ask_s, first_s=first_s, silence_s=silence_s)


def test_time_that_the_asker_itself_stood_still_is_nobodys_silence() -> None:
    watch = make_watch()
    watch.started(ACTOR, 0.0)
    watch.heard(ACTOR, 10.0)
    watch.stood_still(500.0)
    assert watch.hung(540.0) == {}
    assert watch.hung(541.0) == {ACTOR: 31.0}
