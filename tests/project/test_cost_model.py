"""The formulas behind docs/research/scale.md, compared with numerical optimisation, simulation and known values."""

from __future__ import annotations

import pytest

from benchmarks.cost_model import HOUR, all_reduce_bytes, daly, rewritten, simulated_share, useful_share, young


@pytest.mark.parametrize(("stall", "mtbf"), [(2.0, 600.0), (2.0, HOUR), (30.0, 50 * HOUR)])
def test_the_checkpoint_interval_is_optimal(stall: float, mtbf: float) -> None:
    best = max(
        (useful_share(at, stall, mtbf, 60.0), at) for at in [young(stall, mtbf) * k / 100 for k in range(20, 300)]
    )
    assert daly(stall, mtbf) == pytest.approx(best[1], rel=0.02)
    assert young(stall, mtbf) == pytest.approx(best[1], rel=0.1)


@pytest.mark.parametrize("recovery", [0.0, 46.0, 300.0])
def test_the_useful_share_equals_that_of_a_simulated_run(recovery: float) -> None:
    for interval in (5.0, 60.0, 600.0):
        formula = useful_share(interval, 2.0, 900.0, recovery)
        assert simulated_share(interval, 2.0, 900.0, recovery, count=50_000) == pytest.approx(formula, rel=0.02)


def test_a_ring_all_reduce_sends_almost_twice_the_data() -> None:
    assert all_reduce_bytes(1000, 4, 1) == 0
    assert all_reduce_bytes(1000, 4, 2) == 4000
    assert all_reduce_bytes(1000, 2, 1000) == pytest.approx(2 * 2000 * 0.999)


def test_rewriting_a_whole_file_grows_with_the_square_of_time() -> None:
    sent, size = rewritten(100, 10, 1, 1e9)
    flushes = HOUR / 10
    assert size == 100 * 10 * HOUR and sent == pytest.approx(size * flushes / 2, rel=0.01)
