"""The time that is left, by a clock that the test moves. Run: pytest tests/data/test_progress.py"""

from __future__ import annotations

from infogan_ray.data.progress import Pace, counted, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def work(pace: Pace, clock: Clock, done: float, seconds: float, speed: float) -> float:
    """Report the work once a second. Returns the work that is done at the end."""
    for _ in range(round(seconds)):
        clock.now += 1
        done += speed
        pace.report(done)
    return done


def test_the_speed_is_that_of_the_last_minute() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.report(0)
    assert pace.left(100) == "" and pace.speed == 0, "nothing is known yet"
    done = work(pace, clock, 0, 600, speed=10)
    assert pace.left(done + 600) == "1m00s left"
    done = work(pace, clock, done, 61, speed=1)  # another program takes the cores
    assert pace.speed == 1 and pace.left(done + 600) == "10m00s left"
    done = work(pace, clock, done, 30, speed=11)
    assert pace.speed == 6, "half a minute at each speed"


def test_rare_reports_count_three_intervals() -> None:
    clock = Clock()
    pace = Pace(clock)
    for done, minutes in ((0, 0), (100, 5), (110, 5), (120, 5), (130, 5)):
        clock.now += 60 * minutes
        pace.report(done)
    assert pace.left(150) == "10m00s left", "30 units in 15 minutes"


def test_the_time_of_pauses_is_added_in_proportion_and_does_not_change_the_speed() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.report(0)
    done = 0.0
    for _ in range(3):
        done = work(pace, clock, done, 100, speed=10)
        pace.pause()
        clock.now += 20  # an evaluation
        pace.report(done)
        assert pace.speed == 10 and pace.left(done + 5000) == "10m00s left", "500 s, and 5 evaluations of 20 s"
    work(pace, clock, done, 50, speed=10)
    assert pace.left(done + 5000) == "9m00s left", "450 s, and 4.5 evaluations: the share is the same"


def test_work_that_is_repeated_begins_the_measurement_again() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.report(0)
    work(pace, clock, 0, 50, speed=10)
    clock.now += 300  # the workers are started again from step 300
    pace.report(300)
    assert pace.left(1000) == ""
    work(pace, clock, 300, 10, speed=5)
    assert pace.speed == 5 and pace.left(1000) == "2m10s left"


def test_counts_and_durations() -> None:
    assert [counted(n, "worker") for n in (0, 1, 1200)] == ["0 workers", "1 worker", "1,200 workers"]
    assert counted(1, "class", "classes") == "1 class" and counted(2, "class", "classes") == "2 classes"
    assert [duration(s) for s in (0.4, 125, 12_000)] == ["0m00s", "2m05s", "3h20m"]
