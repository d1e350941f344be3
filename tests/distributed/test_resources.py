"""What a cluster has room for, and what is refused before anything starts. Ray is imported and not started."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
import ray
import torch

from infogan_ray import UserError
from infogan_ray.cli.main import INTERRUPTED, main
from infogan_ray.distributed.cluster import auth_check, connection
from infogan_ray.distributed.cluster import machines as cluster_machines
from infogan_ray.distributed.cluster.machines import machines, resources
from infogan_ray.distributed.cluster.network_interface import interface_of
from infogan_ray.distributed.cluster.resources import ASKED, LIMITED, SHARED_OUT, Resources, TooMuch, at_once, fit, room
from infogan_ray.distributed.cluster.threads import cores, limit, use
from infogan_ray.distributed.train import checks
from infogan_ray.distributed.train.driver import Driver
from infogan_ray.distributed.train.head_monitor import WAITING_FOR_ROOM, HeadMonitor
from infogan_ray.distributed.train.trainer import _resources_now
from infogan_ray.distributed.tune import trials
from infogan_ray.distributed.tune.trials import TrialSettings, _train_with_workers
from infogan_ray.training.config import RunConfig
from tests.servers import free_ports

CPU_ONLY = [{"CPU": 2.0}, {"CPU": 4.0}]
GPUS = [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}]


def config(**changes: object) -> RunConfig:
    return RunConfig(batch_size=24, threads=1, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bundle", "placement", "places"),
    [
        ({"CPU": 1}, "pack", 6), ({"CPU": 1}, "strict_pack", 4), ({"CPU": 1}, "strict_spread", 2),
        ({"CPU": 3}, "spread", 1), ({"CPU": 5}, "pack", 0), ({"CPU": 1, "GPU": 1}, "pack", 0),
    ],
)  # fmt: skip
def test_room(bundle: dict[str, float], placement: str, places: int) -> None:
    assert room(bundle, CPU_ONLY, placement) == places


def test_room_for_parts_of_a_gpu() -> None:
    assert room({"CPU": 1, "GPU": 0.5}, GPUS, "pack") == 6
    assert room({"CPU": 1, "GPU": 0.1}, [{"CPU": 16.0, "GPU": 1.0}], "pack") == 10  # not 9, by rounding


def test_a_share_of_a_gpu_is_one_of_a_single_gpu() -> None:
    """Of two GPUs, two workers have 0.6 each; a third would be waited for for ever."""
    assert room({"CPU": 1, "GPU": 0.6}, [{"CPU": 16.0, "GPU": 2.0}], "pack") == 2
    with pytest.raises(TooMuch, match="workers is 4, more than the 3 workers with 0.6 GPU there are"):
        fit(config(workers=4, gpus_per_worker=0.6), GPUS)


def test_what_has_begun_on_a_gpu_does_not_go_on_without_one() -> None:
    """Asked again for its workers' resources, when the machine with the GPUs has died."""
    begun = Resources(2, 1, "cuda")
    heard: list[dict[str, object]] = []
    there = SimpleNamespace(is_guest=False, listen=heard.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_machines, "machines", lambda: CPU_ONLY)
        patch.setattr(ray, "is_initialized", lambda: True)
        with pytest.raises(ValueError, match="device is 'cuda', and no GPU is to be seen"):
            _resources_now(config(workers=2), begun, there)  # type: ignore[arg-type]  # all that it asks of a driver


def test_who_waits_for_room_says_so_until_there_is_some() -> None:
    """Between two attempts of Ray Train nobody asks for room; an elastic run does not ask before there is enough."""

    def said(*seen: tuple[float, set[str] | None], elastic: bool = False) -> list[str]:
        head = HeadMonitor.__new__(HeadMonitor)
        driver, phases = Driver.__new__(Driver), list[str]()
        driver.head, driver.is_guest, driver.final, driver._waits_for_room = head, False, {}, False
        driver.listen = lambda report: phases.append(report["phase"])
        for silent, head.places in seen:
            driver._say_whether_room_is_waited_for(silent, elastic)
        return phases

    assert said((5, None), (12, None), (40, None)) == [], "nobody has looked, or the head does not answer"
    assert said((12, {"CREATED"}), (400, {"CREATED"})) == [], "workers that are busy"
    waits = said((12, {"PENDING"}), (14, set()), (16, {"PENDING"}), (18, {"CREATED"}))
    assert waits == [WAITING_FOR_ROOM, "starting workers"]
    assert said((12, set()), (400, set())) == [], "a slow start"
    assert said((12, set()), (40, set()), (50, {"PENDING"}), elastic=True) == [WAITING_FOR_ROOM]


@pytest.mark.parametrize(
    ("workers", "placement", "runs"),
    [(2, "pack", 3), (2, "strict_pack", 3), (3, "strict_pack", 1), (2, "strict_spread", 2), (1, "strict_spread", 6),
     (7, "pack", 1)],
)  # fmt: skip
def test_runs_at_once(workers: int, placement: str, runs: int) -> None:
    assert at_once(Resources(workers, 1, "cpu", placement=placement), CPU_ONLY) == runs


def test_a_trials_workers_get_the_share_and_the_place_that_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Resources] = []
    monkeypatch.setattr(trials, "run_worker_group", lambda config, wanted, *rest, **more: asked.append(wanted))
    given = config(gpus_per_worker=0.5, placement="strict_spread", workers=2)
    settings = TrialSettings([], "", "cuda", "mi_fraction", 2)
    assert not list(_train_with_workers(given, None, None, settings))  # type: ignore[arg-type]  # only launch uses them
    assert (asked[0].of_a_worker, asked[0].placement) == ({"CPU": 1, "GPU": 0.5}, "strict_spread")


def test_an_embedded_ray_is_one_of_its_own_whatever_runs_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked without an address, Ray joins the latest cluster of this machine, and waits for minutes if it has died."""
    asked: list[str | None] = []
    for name in connection.ENVIRONMENT | connection.ENVIRONMENT_OF_AN_EMBEDDED_RAY:
        monkeypatch.setenv(name, "as it was")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address=None, **more: asked.append(address))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    connection.connect(None)
    with socket.create_server(("127.0.0.1", 0)) as head:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{head.getsockname()[1]}")
        connection.connect(None)
    assert asked == ["local", None]


REFUSALS = (
    (ConnectionError("Failed to connect"), "no Ray cluster there lets us in; if it asks for a token, export RAY_AUTH"),
    (RuntimeError("Version mismatch:\n 2.9"), "RAY_ADDRESS is '127.0.0.1:[0-9]+': Version mismatch: 2.9"),
)


def test_a_cluster_that_refuses_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody listens, and Ray has its own words for what is wrong."""
    for name in connection.ENVIRONMENT:
        monkeypatch.setenv(name, "as it was")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        for error, said in REFUSALS:

            def refused(error: Exception = error, **given: object) -> None:
                raise error

            monkeypatch.setattr(ray, "init", refused)
            with pytest.raises(UserError, match=said):
                connection.connect(None)
    assert auth_check.refusal("head:6379", ZeroDivisionError("a bug")) is None


def test_a_cluster_that_does_not_answer_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray itself tries for two minutes, and writes of its parts meanwhile."""
    for name in connection.ENVIRONMENT:
        monkeypatch.setenv(name, "as it was")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **given: pytest.fail("nobody is there"))
    monkeypatch.setattr(auth_check, "ANSWERS_WITHIN_S", 1.0)
    [port] = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert main(["train", "--preset", "mnist", "--name", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"infogan: RAY_ADDRESS is '127.0.0.1:{port}', and no Ray cluster answers there (")
    assert said.count("\n") == 1

    def interrupted(log: None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "connect", interrupted)
    assert main(["train", "--preset", "mnist", "--name", "nowhere"]) == INTERRUPTED
    assert capsys.readouterr().err == "infogan: interrupted before there was anything to continue with\n"


def test_workers_follow_what_there_is() -> None:
    assert fit(config(), CPU_ONLY).workers == 1
    wanted = fit(config(), GPUS)
    assert (wanted.workers, wanted.device, wanted.of_a_worker) == (3, "cuda", {"CPU": 1, "GPU": 1.0})
    halves = fit(config(workers=6, gpus_per_worker=0.5), GPUS)
    assert halves.of_a_worker == {"CPU": 1, "GPU": 0.5}
    assert fit(config(device="cpu", workers="1:4"), GPUS).of_a_worker == {"CPU": 1}
    assert fit(RunConfig(batch_size=12), CPU_ONLY).threads == 4, "no more than one machine has"


@pytest.mark.parametrize(
    ("changes", "nodes", "limit", "threads", "reason"),
    [
        ({}, [{"CPU": 8.0}], None, 8, SHARED_OUT),
        ({"workers": 3}, [{"CPU": 8.0}], None, 2, SHARED_OUT),
        ({"workers": 3}, [{"CPU": 8.0}], 1, 1, LIMITED),
        ({"workers": 3}, [{"CPU": 8.0}], 8, 2, SHARED_OUT),  # a limit is no wish: there are no more cores than that
        ({"workers": 2, "threads": 3}, [{"CPU": 8.0}], 1, 3, ASKED),
        ({"workers": 4}, [{"CPU": 2.0}], None, None, ""),
        ({"workers": 2}, [{"CPU": 2.0}, {"CPU": 6.0}], None, 3, SHARED_OUT),  # 4 each would have room for one only
        ({"workers": 2, "placement": "strict_spread"}, [{"CPU": 2.0}, {"CPU": 6.0}], None, 2, SHARED_OUT),
        ({}, GPUS, None, 4, SHARED_OUT),  # of three workers two are on one machine, which has 8
        ({"workers": "1:4"}, [{"CPU": 8.0}], None, 2, SHARED_OUT),
    ],
)  # fmt: skip
def test_threads_of_a_worker(
    changes: dict, nodes: list[dict[str, float]], limit: int | None, threads: int | None, reason: str
) -> None:
    if threads is None:
        with pytest.raises(TooMuch):
            fit(RunConfig(batch_size=24, **changes), nodes, limit)
        return
    wanted = fit(RunConfig(batch_size=24, **changes), nodes, limit)
    assert (wanted.threads, wanted.threads_from) == (threads, reason)


def test_an_embedded_cluster_hears_of_omp_num_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert resources(RunConfig(device="cpu")).threads == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert resources(RunConfig(device="cpu")).threads == machines()[0]["CPU"] <= cores()


@pytest.mark.parametrize(
    ("text", "threads"), [("4", 4), (" 2", 2), ("4,2", 4), ("", None), ("0", None), ("many", None)]
)
def test_what_omp_num_threads_says(text: str, threads: int | None) -> None:
    assert limit({"OMP_NUM_THREADS": text}) == threads and limit({}) is None


def test_threads_are_set_and_said() -> None:
    before = torch.get_num_threads()
    try:
        assert use(1, SHARED_OUT).startswith("threads: 1 for each worker, the cores shared out; --threads sets it")
        assert torch.get_num_threads() == 1
        assert use(cores() + 1, SHARED_OUT).startswith(f"threads: {cores()} for each worker")
        assert use(cores() + 1, ASKED, asked=True).startswith(f"threads: {cores() + 1} for each worker, as --threads")
        assert torch.get_num_threads() == cores() + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("changes", "nodes", "said"),
    [
        ({"workers": 8}, CPU_ONLY, "workers is 8, more than the 6 CPUs there are; take 1 to 6"),
        ({"workers": 4, "device": "cuda"}, GPUS, "workers is 4, more than the 3 GPUs there are; take 1 to 3"),
        ({"device": "cuda"}, CPU_ONLY, "device is 'cuda', and no GPU is to be seen"),
        (
            {"workers": 3, "placement": "strict_spread"}, CPU_ONLY,
            "workers is 3 with 1 CPU each, placement 'strict_spread': 2 machine(s) with 2 CPUs, 4 CPUs have room for 2",
        ),
        ({"workers": 6, "placement": "strict_pack"}, CPU_ONLY, "have room for 4; take fewer workers or --threads"),
    ],
)  # fmt: skip
def test_too_much_is_said_with_what_there_is(changes: dict, nodes: list[dict[str, float]], said: str) -> None:
    with pytest.raises(TooMuch) as refused:
        fit(config(**changes), nodes)
    assert said in str(refused.value)


def test_without_a_cluster_nothing_is_waited_for() -> None:
    with pytest.raises(ValueError, match=r"no GPU is to be seen; take --device cpu \(or auto\)$"):
        resources(config(device="cuda", wait=600.0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"placement": "spred"}, r"placement is 'spred' \(did you mean 'spread'\?\)"),
        ({"gpus_per_worker": 0}, "gpus_per_worker is 0; it must be above 0 and at most 1"),
        ({"gpus_per_worker": 2}, "gpus_per_worker is 2"),
        ({"wait": -1}, "wait is -1"),
        ({"wait": float("nan")}, "wait is nan"),
    ],
)
def test_wrong_values_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**changes)


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("198.51.100.1") == ""
    assert {name for _, name in socket.if_nameindex()} >= {"lo"}
