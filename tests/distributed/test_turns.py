"""Several trainings in one process, in turn: each comes to what it comes to alone.

Run: pytest tests/distributed/test_turns.py
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from infogan_ray.data.image_set import ImageSet
from infogan_ray.distributed.tune.turns import Turns
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from tests.conftest import tiny_config
from tests.training.test_step import run_alone


def in_threads(actions: list[Callable[[], Any]]) -> None:
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def test_one_has_the_turn_and_the_others_have_theirs_in_the_order_of_asking() -> None:
    turns, taken, inside = Turns(), list[str](), 0

    def work(name: str) -> None:
        nonlocal inside
        for _ in range(20):
            with turns.turn():
                inside += 1
                taken.append(name)
                time.sleep(0.001)  # those that wait get ahead, if anybody can
                assert inside == 1
                inside -= 1

    with turns.turn():
        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
    for thread in threads:
        thread.join(30)
    assert len(taken) == 60 and taken[:3] == ["a", "b", "c"]
    assert all(a != b for a, b in pairwise(taken[:50])), "nobody twice while others wait"


def test_a_turn_that_ends_in_an_error_is_over() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="broken"), turns.turn():
        raise ValueError("broken")
    with turns.turn():
        pass


def test_nothing_draws_from_the_one_generator_outside_of_a_turn(image_set: ImageSet, tmp_path: Path) -> None:
    """A run that begins seeds it and draws its weights from it; one that ends builds its best model meanwhile."""
    left = [torch.get_rng_state()]

    @contextmanager
    def turn() -> Iterator[None]:
        assert torch.equal(torch.get_rng_state(), left[-1])
        yield
        torch.rand(1)  # as if another run had drawn meanwhile
        left.append(torch.get_rng_state())

    run_alone(tiny_config(), image_set, tmp_path / "run", turn=turn)
    run_alone(tiny_config(steps=9, resume=True), image_set, tmp_path / "run", turn=turn)
    assert torch.equal(torch.get_rng_state(), left[-1]) and len(left) > 20


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "another seed": {"seed": 5},
    "bf16": {"precision": "bf16", "seed": 1},
    "the term": {"steps": 9},
    "broken": {},
}
SECTIONS: dict[str, dict[str, Any]] = {
    "the term": {"consistency": {"weight": 1.0, "start": 0, "full": 4}},
    "broken": {"objective": {"lambda_categorical": 3e38}},
}


def test_runs_that_share_a_process_come_to_what_each_comes_to_alone(image_set: ImageSet, tmp_path: Path) -> None:
    def config(name: str) -> RunConfig:
        made = tiny_config(**{"steps": 8, "checkpoint_every": 4, **CONFIGS[name]})
        return made.override(SECTIONS.get(name, {}), name)

    turns, ended, active, most = Turns(), dict[str, str](), 0, 0

    def together(name: str) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        try:
            run_alone(config(name), image_set, tmp_path / "together" / name, turn=turns.turn, resident=image_set.images)
            ended[name] = "finished"
        except Exception as error:
            ended[name] = type(error).__name__
        active -= 1

    in_threads([partial(together, name) for name in CONFIGS])
    assert most > 1 and ended == {**dict.fromkeys(CONFIGS, "finished"), "broken": "Diverged"}
    for name in CONFIGS:
        if name == "broken":
            continue
        run_alone(config(name), image_set, tmp_path / "alone" / name)
        alone, other = (
            checkpoints.choose(RunDirectory(open_storage(tmp_path / how / name)).checkpoints, "last", "step")
            for how in ("alone", "together")
        )
        assert alone.step == other.step == config(name).steps
        for read in (checkpoints.Checkpoint.model_tensors, checkpoints.Checkpoint.training_tensors):
            ours, theirs = read(other), read(alone)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
        assert other.metrics.keys() == alone.metrics.keys()
