import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import NaiveSumTree

import replay.sum_tree
from replay.sum_tree import SumTree

# Some are powers of two, some not; the last three are deeper than the level where queries start.
CAPACITIES = (1, 2, 3, 5, 8, 13, 64, 100, 1000, 1024, 3000)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def tree_of(*values: float) -> SumTree:
    tree = SumTree(len(values))
    tree.set(np.arange(len(values)), floats(*values))
    return tree


@st.composite
def updates(draw: st.DrawFn) -> tuple[int, list[tuple[list[int], list[int]]]]:
    """A capacity and a history of updates with integer values, whose sums are exact in float64."""
    capacity = draw(st.sampled_from(CAPACITIES))
    slot = st.integers(0, capacity - 1)
    pair = st.tuples(slot, st.integers(0, 1000))
    scattered = st.lists(pair, max_size=20).map(lambda pairs: [list(x) for x in pairs])
    history = []
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.booleans()):
            pairs = draw(scattered)
            history.append(([p[0] for p in pairs], [p[1] for p in pairs]))
        else:  # a run of neighbours
            start = draw(slot)
            stop = min(capacity, start + draw(st.integers(1, 50)))
            seed = draw(st.integers(0, 2**32 - 1))
            values = np.random.default_rng(seed).integers(0, 1000, stop - start)
            history.append((list(range(start, stop)), values.tolist()))
    return capacity, history


@given(updates(), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_any_history_agrees_with_the_naive_tree(
    case: tuple[int, list[tuple[list[int], list[int]]]], seed: int
) -> None:
    capacity, history = case
    rng = np.random.default_rng(seed)
    tree, naive = SumTree(capacity), NaiveSumTree(capacity)
    for slots, values in history:
        tree.set(np.array(slots, np.int64), np.array(values, np.float64))
        naive.set(slots, [float(value) for value in values])
        tree.check_valid()
        assert tree.total == naive.total
        everything = np.arange(capacity)
        assert tree.get(everything).tolist() == naive.get(everything.tolist())
        if naive.total > 0.0:
            # Whole numbers hit the edges between slots exactly, halves the middle.
            targets = rng.integers(0, 2 * int(naive.total), 5) / 2
            assert tree.query(targets).tolist() == naive.query(targets.tolist())


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("seed", range(5))
def test_fractions_find_the_right_slot_up_to_rounding(capacity: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree = SumTree(capacity)
    values = rng.random(capacity) ** 8 * (rng.random(capacity) < 0.5)
    values[rng.integers(capacity)] = 1.0
    tree.set(np.arange(capacity), values)
    tree.check_valid()
    targets = rng.random(500) * tree.total
    slots = tree.query(targets)
    ends = np.cumsum(values)
    slack = 1e-12 * tree.total
    assert np.all(targets >= (ends - values)[slots] - slack)
    assert np.all(targets <= ends[slots] + slack)
    assert np.all(values[slots] > 0.0)


@st.composite
def wild_updates(draw: st.DrawFn) -> tuple[int, list[tuple[list[int], list[float]]]]:
    """A capacity and a history of updates with values of every magnitude the tree allows."""
    capacity = draw(st.sampled_from((1, 2, 3, 13, 100, 1000)))
    largest = float(np.finfo(np.float64).max) / 1024
    tiny = float(np.nextafter(0.0, 1.0))
    value = st.one_of(
        st.sampled_from([0.0, tiny, 1e-300, 1e-6, 1.0, 3.4e38, 1e300, largest]),
        st.floats(0.0, largest),
        st.floats(0.0, 10.0),
    )
    pairs = st.lists(st.tuples(st.integers(0, capacity - 1), value), min_size=1, max_size=30)
    history = [[list(x) for x in zip(*p, strict=True)] for p in draw(st.lists(pairs, max_size=5))]
    return capacity, [(slots, values) for slots, values in history]


@given(wild_updates(), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_values_of_any_magnitude_are_found_where_the_running_sum_says(
    case: tuple[int, list[tuple[list[int], list[float]]]], seed: int
) -> None:
    """Against numpy's running sum, up to its own rounding; 0 is never found, whatever the rest."""
    capacity, history = case
    rng = np.random.default_rng(seed)
    tree, values = SumTree(capacity), np.zeros(capacity)
    for slots, new in history:
        tree.set(np.array(slots), np.array(new))
        values[slots] = new
        tree.check_valid()
        np.testing.assert_array_equal(tree.get(np.arange(capacity)), values)
        ends = values.cumsum()
        slack = 2.0 * capacity * np.finfo(np.float64).eps * ends[-1]
        assert abs(tree.total - ends[-1]) <= slack
        if tree.total > 0.0:
            shares = np.concatenate([[0.0, 1.0, np.nextafter(1.0, 0.0)], rng.random(20)])
            edges = np.minimum(rng.choice(ends, 10), tree.total)  # where one slot ends
            targets = np.concatenate([shares * tree.total, edges])
            found = tree.query(targets)
            assert np.all(values[found] > 0.0)
            assert np.all(targets >= (ends - values)[found] - slack)
            assert np.all(targets <= ends[found] + slack)


def test_nothing_drifts_over_a_hundred_thousand_updates() -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(300)
    for _ in range(400):
        tree.set(rng.integers(0, 300, 250), rng.random(250) * 10.0 ** rng.integers(-12, 12, 250))
    tree.check_valid()
    tree.set(np.arange(300), np.zeros(300))
    assert tree.total == 0.0  # a tree nudged by differences keeps a residue here


def test_query_returns_hand_computed_slots() -> None:
    tree = tree_of(1.0, 0.0, 2.0, 4.0)
    assert tree.total == 1.0 + 0.0 + 2.0 + 4.0
    targets = floats(0.0, 0.5, 1.0, 2.9, 3.0, 6.9)
    assert tree.query(targets).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("count", [2, 3, 10, 600])
def test_last_of_a_slots_values_wins(count: int) -> None:
    tree = SumTree(5000)
    values = np.arange(count, dtype=np.float64)
    tree.set(np.full(count, 7), values)
    assert tree.get(ints(7)).tolist() == [count - 1.0]
    assert tree.total == count - 1.0
    tree.check_valid()


def test_last_value_wins_among_many_duplicates_in_any_order() -> None:
    rng = np.random.default_rng(1)
    for capacity in (4, 100, 5000):
        slots = rng.integers(0, capacity, 4096)
        values = rng.random(4096)
        tree = SumTree(capacity)
        tree.set(slots, values)
        last = dict(zip(slots.tolist(), values.tolist(), strict=True))
        named = np.array(list(last), np.int64)
        assert tree.get(named).tolist() == list(last.values())
        tree.check_valid()


def test_set_and_query_leave_their_arguments_alone() -> None:
    tree = SumTree(2000)
    slots, values, targets = ints(5, 1999), floats(1.0, 2.0), floats(0.5, 2.5)
    for array in (slots, values, targets):
        array.setflags(write=False)  # as arrays arrive from Ray
    tree.set(slots, values)
    assert tree.query(targets).tolist() == [5, 1999]
    assert slots.tolist() == [5, 1999]
    assert targets.tolist() == [0.5, 2.5]


def test_narrow_integers_are_slots_too() -> None:
    tree = SumTree(200)
    tree.set(np.array([199], np.uint8), floats(3.0))  # 199 + 256 leaves overflows a uint8
    assert tree.get(np.array([199], np.uint8)).tolist() == [3.0]


def test_empty_arrays_do_nothing() -> None:
    tree = tree_of(1.0, 2.0)
    tree.set(ints(), floats())
    assert tree.get(ints()).shape == (0,)
    assert tree.query(floats()).shape == (0,)
    assert tree.total == 3.0


def test_zero_is_never_returned_by_rounding_at_the_right_edge() -> None:
    rng = np.random.default_rng(2)
    for capacity in (3, 7, 50, 1024, 3000):
        for _ in range(50):
            values = rng.random(capacity) * (rng.random(capacity) < 0.1)
            values[rng.integers(capacity // 2 + 1)] = 0.1
            values[rng.integers(capacity // 2, capacity) :] = 0.0  # the edge is inside the tree
            if values.sum() == 0.0:
                continue
            tree = SumTree(capacity)
            tree.set(np.arange(capacity), values)
            edge = np.nextafter(tree.total, 0.0)
            targets = floats(0.0, edge, np.nextafter(edge, 0.0), tree.total)
            slots = tree.query(targets)
            assert np.all(values[slots] > 0.0)
            assert slots[-1] == values.nonzero()[0][-1]


def test_stratified_draws_that_round_up_to_the_total_are_served() -> None:
    tree = tree_of(0.1, 0.7, 0.0)
    almost_one = np.nextafter(1.0, 0.0)
    target = (511 + almost_one) / 512 * tree.total
    assert target == tree.total
    assert tree.query(floats(target)).tolist() == [1]


def test_tiniest_values_are_found() -> None:
    tiny = float(np.nextafter(0.0, 1.0))  # subnormal
    assert tree_of(0.0, tiny, 0.0).query(floats(0.0)).tolist() == [1]
    assert tree_of(0.0, 1.0, tiny, 0.0).query(floats(0.0)).tolist() == [1]


def test_single_slot_tree_works() -> None:
    tree = tree_of(2.5)
    assert tree.total == 2.5
    assert tree.query(floats(0.0, 2.4)).tolist() == [0, 0]
    tree.check_valid()


@pytest.mark.parametrize("capacity", [10, 1000, 3000])
def test_slots_are_drawn_in_proportion_to_their_values(capacity: int) -> None:
    rng = np.random.default_rng(3)
    values = rng.random(capacity) ** 2 + 0.05
    values[::5] = 0.0
    tree = SumTree(capacity)
    tree.set(rng.permutation(capacity)[: capacity // 2], np.ones(capacity // 2))  # overwritten
    tree.set(np.arange(capacity), values)
    draws = 200 * capacity
    counts = np.bincount(tree.query(rng.random(draws) * tree.total), minlength=capacity)
    expected = draws * values / values.sum()
    assert counts[values == 0.0].sum() == 0
    live = values > 0.0
    freedom = int(live.sum()) - 1
    chi_square = float((((counts - expected)[live]) ** 2 / expected[live]).sum())
    # Chi-square of f degrees of freedom has mean f and deviation sqrt(2 f): five deviations.
    assert abs(chi_square - freedom) < 5.0 * np.sqrt(2.0 * freedom)
    # The tolerance has teeth: values squared once more are far outside of it.
    wrong = draws * values**2 / (values**2).sum()
    assert (((counts - wrong)[live]) ** 2 / wrong[live]).sum() > freedom + 50 * np.sqrt(2 * freedom)


def test_range_and_scattered_updates_build_the_same_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    history = [(rng.integers(0, 3000, 60), rng.random(60)) for _ in range(20)]
    roots = []
    for nodes_per_slot in (0, 8, 10**9):  # never ranges, as it is, always ranges
        monkeypatch.setattr(replay.sum_tree, "_RANGE_NODES_PER_SLOT", nodes_per_slot)
        tree = SumTree(3000)
        for slots, values in history:
            tree.set(slots, values)
        tree.check_valid()
        roots.append(tree.total)
    assert roots[0] == roots[1] == roots[2]


@pytest.mark.parametrize("value", [-1.0, -1e-300, np.nan, np.inf, -np.inf, 1e308])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_impossible_value_is_refused_and_changes_nothing(value: float, where: int) -> None:
    tree = tree_of(1.0, 2.0, 3.0)
    values = floats(4.0, 5.0, 6.0)
    values[where] = value
    with pytest.raises(ValueError, match=r"Expect `values` from 0 to .*, actually: "):
        tree.set(ints(0, 1, 2), values)
    assert tree.get(ints(0, 1, 2)).tolist() == [1.0, 2.0, 3.0]
    tree.check_valid()


def test_largest_values_allowed_do_not_overflow_the_total() -> None:
    tree = SumTree(4)
    tree.set(np.arange(4), np.full(4, np.finfo(np.float64).max / 4))
    assert np.isfinite(tree.total)
    tree.check_valid()


@pytest.mark.parametrize("slot", [-1, 3, 4, 10**12])
def test_slot_out_of_range_is_refused(slot: int) -> None:
    tree = tree_of(1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match=rf"Expect `slots` in \[0, 3\), actually: {slot}"):
        tree.set(ints(0, slot), floats(1.0, 1.0))
    with pytest.raises(ValueError, match=r"Expect `slots` in \[0, 3\)"):
        tree.get(ints(slot))
    assert tree.total == 6.0


def test_shapes_and_kinds_are_checked() -> None:
    tree = tree_of(1.0, 2.0)
    with pytest.raises(ValueError, match=r"Expect `values` of shape \(2,\) like `slots`"):
        tree.set(ints(0, 1), floats(1.0))
    with pytest.raises(ValueError, match="Expect `slots` as integers of rank 1, actually: float64"):
        tree.set(floats(0.0), floats(1.0))
    with pytest.raises(ValueError, match="rank 2"):
        tree.get(np.zeros((1, 1), np.int64))
    with pytest.raises(ValueError, match="Expect `targets` of rank 1, actually: rank 2"):
        tree.query(np.zeros((1, 1)))
    with pytest.raises(ValueError, match="Expect `capacity` >= 1, actually: 0"):
        SumTree(0)


@pytest.mark.parametrize("target", [-0.1, 3.1, np.nan, np.inf])
def test_target_out_of_range_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match=r"Expect `targets` from 0 to 3.0, actually: "):
        tree_of(1.0, 2.0).query(floats(0.5, target))


def test_query_of_an_all_zero_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="Expect a value > 0 in the tree"):
        SumTree(4).query(floats(0.0))


@pytest.mark.parametrize(
    ("node", "value", "message"),
    [
        (1, 99.0, "node 1 must be the sum of its children"),
        (2, 0.0, "node 1 must be the sum of its children"),  # its own children are right
        (5, -1.0, "node 5 must be finite and >= 0"),
        (8, np.nan, "node 8 must be finite and >= 0"),
        (9, np.inf, "node 9 must be finite and >= 0"),
        (4, 3.0 + 2**-51, "node 4 must be the sum of its children"),  # one bit off
    ],
)
def test_corrupted_tree_is_found_out(node: int, value: float, message: str) -> None:
    tree = tree_of(1.0, 2.0, 3.0, 4.0, 5.0)
    tree.check_valid()
    if node == 2:  # corrupt a node together with all below it
        tree._nodes[[2, 4, 5, 8, 9, 10, 11]] = 0.0
    tree._nodes[node] = value
    with pytest.raises(AssertionError, match=message):
        tree.check_valid()


def test_value_beyond_the_capacity_is_found_out() -> None:
    tree = tree_of(1.0, 2.0, 3.0)
    tree._nodes[[7, 3, 1]] += 0.5
    with pytest.raises(AssertionError, match="slot 3 beyond the capacity of 3 must be 0"):
        tree.check_valid()


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 5, 8, 100])
def test_run_is_the_same_as_get_and_goes_round_the_end(capacity: int) -> None:
    tree = tree_of(*(np.arange(capacity) + 1.0))
    for first in range(capacity):
        for num in (0, 1, capacity // 2, capacity):
            expected = tree.get((first + np.arange(num)) % capacity)
            np.testing.assert_array_equal(tree.run(first, num), expected)


def test_run_is_a_copy() -> None:
    tree = tree_of(1.0, 2.0)
    tree.run(0, 2)[:] = 7.0
    assert tree.get(ints(0, 1)).tolist() == [1.0, 2.0]


def test_run_out_of_range_is_refused() -> None:
    tree = tree_of(1.0, 2.0)
    for first in (-1, 2):
        with pytest.raises(ValueError, match=rf"Expect `first` in \[0, 2\), actually: {first}"):
            tree.run(first, 1)
    for num in (-1, 3):
        with pytest.raises(ValueError, match=f"Expect `num` from 0 to 2, actually: {num}"):
            tree.run(0, num)
