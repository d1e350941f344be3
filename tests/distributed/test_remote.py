"""One worker on a cluster, without Ray Train: what dies is replaced, and who waits says so. Run: make test-ray"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import ray
from infogan_ray.distributed.solo import driver as solo

from infogan_ray import train
from infogan_ray.distributed.cluster.resources import Resources, TooMuch
from infogan_ray.distributed.train import relay, remote
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import TrainingFailed
from tests.conftest import tiny_config
from tests.distributed.test_solo import undisturbed
from tests.harm import Harm, all_cpus_taken, digest, process_of, processes_of
from tests.servers import Proxy

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240), pytest.mark.usefixtures("ray_cluster")]

LONG: dict[str, Any] = {"steps": 300, "checkpoint_every": 50, "keep": 20, "threads": 1}
WORKER, RELAY = r"infogan_ray\.solo\.worker", "ray::Relay"


def found(pattern: str) -> psutil.Process:
    return process_of(os.getpid(), pattern)


def signalled(pattern: str, how: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    return lambda: found(pattern).send_signal(how)


def all_have_ended() -> None:
    """Soon: Ray does not wait for the end of what it ends."""
    _, left = psutil.wait_procs(processes_of(os.getpid(), f"{WORKER}|{RELAY}"), timeout=20)
    assert not left


@pytest.fixture
def bars(npz: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    return lambda **changes: tiny_config(data=str(npz), storage=str(tmp_path / "runs"), **LONG | changes)


def test_a_killed_worker_and_a_killed_relay_are_replaced_with_the_same_bits(
    bars: Any, npz: Path, tmp_path: Path
) -> None:
    seen: list[psutil.Process] = []

    def kill_relay() -> None:
        seen.append(found(WORKER))
        found(RELAY).kill()

    harm = Harm({80: signalled(WORKER), 200: kill_relay})
    result = train(bars(name="disturbed"), harm)
    assert result.state == "finished" and result.restarts == 2
    assert not seen[0].is_running(), "its relay's end is its own"
    assert digest(result.run, 300) == digest(undisturbed(npz, tmp_path / "calm", **LONG), 300)
    steps = [row["step"] for row in result.run.read_metrics()]
    assert steps == sorted(set(steps)), "every step once, in order"
    assert [line for line in harm.said if "ended by SIGKILL" in line] and relay.GONE in harm.said
    all_have_ended()


def test_a_frozen_worker_is_noticed_and_replaced(bars: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solo, "SILENT_S", 15.0)  # a busy machine may be silent for some seconds
    frozen: list[psutil.Process] = []

    def freeze(pattern: str) -> None:
        frozen.append(found(pattern))
        frozen[-1].suspend()

    harm = Harm({80: lambda: freeze(WORKER), 200: lambda: freeze(RELAY)})
    result = train(bars(), harm)
    assert result.state == "finished" and result.restarts == 2
    _, left = psutil.wait_procs(frozen, timeout=30)
    assert len(frozen) == 2 and not left, "Ray gives a process that it ends some seconds for it"


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Somebody who has all CPUs of the cluster."""
    monkeypatch.setattr(relay, "SAYS_SO_S", 1.0)

    with all_cpus_taken() as there:
        yield there


def test_who_has_to_wait_for_a_place_says_so(bars: Any, other: Any) -> None:
    phases: list[str] = []

    def listen(report: dict[str, Any]) -> None:
        phases.append(report["phase"])
        if report["phase"] == "waiting for room on the cluster":
            ray.kill(other)

    assert train(bars(steps=6, checkpoint_every=6), listen).state == "finished"
    assert phases.count("waiting for room on the cluster") == 1


def test_who_is_interrupted_while_waiting_leaves_nobody_in_the_queue(bars: Any, other: Any) -> None:
    def listen(report: dict[str, Any]) -> None:
        if report["phase"] == "waiting for room on the cluster":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(bars(name="waits"), listen)
    run = RunDirectory(open_storage(bars().storage) / "waits")
    assert run.get_status()["state"] == "interrupted"
    ray.kill(other)
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < 4:
        assert time.monotonic() < deadline, "somebody has taken a place"
        time.sleep(0.2)
    time.sleep(2)
    assert ray.available_resources()["CPU"] == 4 and not processes_of(os.getpid(), RELAY)


def test_a_size_that_no_machine_has_any_more_is_not_waited_for(bars: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the death of the largest machine; the second worker asks for what there is by then."""
    monkeypatch.setattr(relay, "SAYS_SO_S", 1.0)
    sizes = [Resources(1, 64, "cpu"), Resources(1, 1, "cpu")]
    monkeypatch.setattr(remote, "resources", lambda config, say: sizes.pop(0))
    harm = Harm({})
    result = train(bars(steps=6, checkpoint_every=6), harm)
    assert result.state == "finished" and result.restarts == 1
    assert "no machine of the cluster has 64 CPU any more" in harm.said

    def nothing(config: RunConfig, say: Any) -> Resources:
        raise TooMuch("threads is 4, and all machines are gone")

    def harmed() -> None:
        monkeypatch.setattr(remote, "resources", nothing)
        found(WORKER).kill()

    sizes.append(Resources(1, 1, "cpu"))
    with pytest.raises(TrainingFailed, match="threads is 4, and all machines are gone; the log is"):
        train(bars(name="gone"), Harm({80: harmed}))
    all_have_ended()


def test_an_answer_that_nobody_has_read_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notice may come when the answer is on its way."""

    class Worker:
        silent, ended = 0.0, False
        told: ClassVar = [[{"step": 1}], [{"step": 2}], []]

        def reports(self, seconds: float) -> list[dict[str, Any]]:
            return self.told.pop(0)

    monkeypatch.setattr(relay, "WorkerProcess", Worker)
    one = relay.Relay()
    assert one.reports(0, 0)[:2] == (1, [{"step": 1}])
    assert one.reports(0, 0)[:2] == (2, [{"step": 1}]), "the first was not seen"
    assert one.reports(0, 2)[:2] == (3, [{"step": 2}])
    assert one.reports(0, 3)[:2] == (4, [])


def test_what_ray_says_of_its_own_is_passed_on() -> None:
    error = ray.exceptions.RuntimeEnvSetupError("Failed to set up working_dir:\n no space left")
    assert "no space left" in relay._in_a_line(error)
    assert relay._in_a_line(ray.exceptions.ActorDiedError()) == relay.GONE


def test_a_worker_that_cannot_begin_says_why_in_a_line(bars: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(relay.Relay):
        def __init__(self) -> None:
            raise ModuleNotFoundError("No module named 'infogan_ray'")

    monkeypatch.setattr(relay, "Relay", Broken)
    monkeypatch.setattr(solo, "WORKER_RESTARTS", 1)
    with pytest.raises(TrainingFailed, match=r"^ModuleNotFoundError: No module named 'infogan_ray'; the log is "):
        train(bars())


def test_of_a_run_in_a_bucket_the_machine_is_named_that_has_the_log(
    bars: Any, monkeypatch: pytest.MonkeyPatch, proxy: Proxy
) -> None:
    monkeypatch.setattr(solo, "WORKER_RESTARTS", 0)
    config = dataclasses.replace(bars(checkpoint_every=250), storage=proxy.uri("named"))
    said: list[str] = []

    def listen(report: dict[str, Any]) -> None:
        if report.get("step", 0) >= 1 and not said:
            said.append("killed")
            found(WORKER).kill()

    with pytest.raises(TrainingFailed) as failed:
        train(config, listen)
    assert str(failed.value).endswith(f"{config.name}.log on {ray.util.get_node_ip_address()}")


@pytest.mark.parametrize(
    ("arguments", "nodes", "takes"),
    [
        ([], [{"CPU": 4}, {"CPU": 8}, {"CPU": 0}], {"CPU": 8}),
        (["--threads", "3"], [{"CPU": 4}], {"CPU": 3}),
        ([], [{"CPU": 16}, {"CPU": 8, "GPU": 1}], {"CPU": 8, "GPU": 1.0}),
        (["--device", "cpu"], [{"CPU": 16}, {"CPU": 8, "GPU": 1}], {"CPU": 16}),
        ([], [{"CPU": 8, "GPU": 2}], {}),  # two workers, by default
        ([], [{"CPU": 0}], {}),
        ([], [], {}),
    ],
)
def test_what_is_asked_for_before_the_configuration_is_known(
    arguments: list[str], nodes: list[dict[str, float]], takes: dict[str, float]
) -> None:
    assert relay._guess(arguments, nodes) == takes


def test_a_wrong_guess_is_given_back(bars: Any) -> None:
    relay.warm([])
    guessed = relay._warmed
    assert guessed is not None and guessed.takes == {"CPU": 4}
    result = train(bars(steps=6, checkpoint_every=6))
    assert result.state == "finished" and guessed.ended and relay._warmed is None
    relay.warm([])
    assert train(bars(name="two", steps=6, checkpoint_every=6, workers=2)).state == "finished"
