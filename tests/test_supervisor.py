import json

import pytest

from driver.supervisor import GiveUp, Recreate, Supervisor


def make_supervisor(**changes: float) -> Supervisor:
    sound = {
        "quick_death_s": 30.0,
        "give_up_deaths": 10,
        "first_delay_s": 1.0,
        "max_delay_s": 30.0,
    }
    return Supervisor(**(sound | changes))  # type: ignore[arg-type]


class Driver:
    """Does what the driver does with one worker, on a clock that it moves by hand."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.now = 1000.0
        self.incarnation = supervisor.started("actor", 3)
        supervisor.worked("actor", 3, self.now)

    def lives(self, seconds: float, reason: str = "OOM") -> Recreate | GiveUp:
        """Let the worker live so long, die, and be started again if that is the decision."""
        self.now += seconds
        decision = self.supervisor.died("actor", 3, reason, self.now)
        if isinstance(decision, Recreate):
            if decision.delay_s:
                assert self.supervisor.due(self.now + decision.delay_s - 0.01) == []
            self.now += decision.delay_s
            assert self.supervisor.due(self.now) == [("actor", 3)]
            self.incarnation = self.supervisor.started("actor", 3)
            self.supervisor.worked("actor", 3, self.now)
            assert self.supervisor.due(self.now) == []
        return decision


def delay_s(decision: Recreate | GiveUp) -> float:
    assert isinstance(decision, Recreate), decision
    return decision.delay_s


def test_quick_deaths_are_delayed_twice_as_long_each_time_up_to_the_most() -> None:
    driver = Driver(make_supervisor())
    delays = [delay_s(driver.lives(1.0)) for _ in range(9)]
    assert delays == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_time_before_it_works_is_not_life() -> None:
    supervisor = make_supervisor(give_up_deaths=2)
    supervisor.started("learner", 0)
    assert isinstance(supervisor.died("learner", 0, "no memory to compile in", 500.0), Recreate)
    supervisor.started("learner", 0)
    supervisor.worked("learner", 0, 900.0)
    supervisor.worked("learner", 0, 901.0)
    assert isinstance(supervisor.died("learner", 0, "again", 929.9), GiveUp)


def test_tenth_quick_death_in_a_row_gives_up_with_the_last_reason() -> None:
    driver = Driver(make_supervisor())
    for _ in range(9):
        driver.lives(1.0)
    decision = driver.lives(29.9, reason="CUDA out of memory")
    assert decision == GiveUp(
        "actor 3 died 10 times in a row, each time less than 30 s after its start; "
        "the last time: CUDA out of memory"
    )
    assert driver.supervisor.due(1e9) == []


def test_worker_that_lived_long_starts_over_from_no_deaths() -> None:
    driver = Driver(make_supervisor())
    for _ in range(9):
        driver.lives(1.0)
    assert driver.lives(30.0) == Recreate(delay_s=0.0, quick_deaths=0)
    delays = [delay_s(driver.lives(1.0)) for _ in range(9)]
    assert delays == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert isinstance(driver.lives(1.0), GiveUp)


def test_worker_that_always_lives_long_is_started_again_for_ever() -> None:
    driver = Driver(make_supervisor())
    assert all(delay_s(driver.lives(31.0)) == 0.0 for _ in range(100))
    assert driver.incarnation == 100


def test_delay_does_not_count_as_life() -> None:
    driver = Driver(make_supervisor(quick_death_s=3.0, first_delay_s=10.0))
    decisions = [driver.lives(1.0) for _ in range(10)]
    assert isinstance(decisions[-1], GiveUp)


def test_deaths_of_different_workers_do_not_add_up() -> None:
    supervisor = make_supervisor()
    for index in range(40):
        supervisor.started("actor", index)
    decisions = [supervisor.died("actor", index, "preempted", 1.0) for index in range(40)]
    assert set(decisions) == {Recreate(delay_s=0.0, quick_deaths=1)}
    assert len(supervisor.due(1.0)) == 40


def test_incarnations_count_up_per_worker() -> None:
    supervisor = make_supervisor()
    assert supervisor.started("actor", 0) == 0
    assert supervisor.started("actor", 1) == 0
    assert supervisor.started("replay", 0) == 0
    supervisor.died("actor", 1, "killed", 1.0)
    assert supervisor.started("actor", 1) == 1
    supervisor.died("actor", 1, "killed", 2.0)
    assert supervisor.started("actor", 1) == 2
    supervisor.died("actor", 0, "killed", 4.0)
    assert supervisor.started("actor", 0) == 1


def test_restarts_are_counted_per_role_when_the_worker_starts_again() -> None:
    supervisor = make_supervisor()
    for role, index in [("actor", 0), ("actor", 1), ("learner", 0)]:
        supervisor.started(role, index)
        assert supervisor.restarts(role) == 0
    for index in (0, 1):
        supervisor.died("actor", index, "killed", 1.0)
    assert supervisor.restarts("actor") == 0
    for index in (0, 1):
        supervisor.started("actor", index)
    assert supervisor.restarts("actor") == 2
    assert supervisor.restarts("learner") == 0
    assert supervisor.restarts("evaluator") == 0


def test_due_names_the_longest_waiting_first() -> None:
    supervisor = make_supervisor()
    for index in range(3):
        supervisor.started("actor", index)
    for index, now in [(2, 1.0), (0, 2.0), (1, 3.0)]:
        supervisor.died("actor", index, "killed", now)
    assert supervisor.due(0.5) == []
    assert supervisor.due(2.0) == [("actor", 2), ("actor", 0)]
    assert supervisor.due(9.0) == [("actor", 2), ("actor", 0), ("actor", 1)]


def test_death_told_twice_counts_once() -> None:
    supervisor = make_supervisor()
    supervisor.started("actor", 0)
    first = supervisor.died("actor", 0, "push failed", 1.0)
    assert supervisor.died("actor", 0, "poll failed", 1.5) is first
    supervisor.started("actor", 0)
    assert supervisor.died("actor", 0, "push failed", 3.0) == Recreate(delay_s=1.0, quick_deaths=2)


def test_given_up_worker_stays_given_up() -> None:
    supervisor = make_supervisor(give_up_deaths=1)
    supervisor.started("learner", 0)
    decision = supervisor.died("learner", 0, "no GPU", 1.0)
    assert isinstance(decision, GiveUp)
    assert supervisor.died("learner", 0, "again", 2.0) is decision
    with pytest.raises(ValueError, match="Expect learner 0 dead before a restart, actually: given"):
        supervisor.started("learner", 0)


def test_living_worker_is_not_started_again() -> None:
    supervisor = make_supervisor()
    supervisor.started("actor", 0)
    with pytest.raises(ValueError, match="Expect actor 0 dead before a restart, actually: alive"):
        supervisor.started("actor", 0)


def test_death_of_an_unknown_worker_is_an_error() -> None:
    with pytest.raises(KeyError, match="actor 7 died but was never started"):
        make_supervisor().died("actor", 7, "killed", 0.0)


def test_incarnations_go_on_over_a_resume() -> None:
    before = make_supervisor()
    before.started("actor", 0)
    before.died("actor", 0, "killed", 1.0)
    before.started("actor", 0)
    before.started("replay", 0)
    state = json.loads(json.dumps(before.state_dict()))
    after = make_supervisor()
    after.load_state_dict(state)
    assert after.state_dict() == before.state_dict()
    assert after.started("actor", 0) == 2
    assert after.started("replay", 0) == 1
    assert after.started("actor", 1) == 0
    assert after.restarts("actor") == 0  # a resume is no restart
    with pytest.raises(AssertionError, match="3 workers were started before the load"):
        after.load_state_dict(state)


def test_very_long_streaks_do_not_overflow_the_delay() -> None:
    driver = Driver(make_supervisor(give_up_deaths=3000))
    assert max(delay_s(driver.lives(1.0)) for _ in range(2000)) == 30.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"give_up_deaths": 0}, "Expect `give_up_deaths` >= 1, actually: 0"),
        ({"quick_death_s": -1.0}, "Expect `quick_death_s` >= 0, actually: -1.0"),
        ({"first_delay_s": -1.0}, "Expect `first_delay_s` >= 0, actually: -1.0"),
        ({"max_delay_s": float("nan")}, "Expect `max_delay_s` >= 0, actually: nan"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_supervisor(**change)
