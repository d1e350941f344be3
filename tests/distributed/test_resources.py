"""How many workers a cluster has room for, and what is refused before a run starts. Ray is not started."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import psutil
import pytest
import ray
import torch
from torch.distributed import TCPStore

from infogan_ray import UserError
from infogan_ray.cli.main import INTERRUPTED, main
from infogan_ray.distributed.cluster import auth_check, connection
from infogan_ray.distributed.cluster import machines as cluster_machines
from infogan_ray.distributed.cluster.machines import machines, resources
from infogan_ray.distributed.cluster.network_interface import interface_of, open_store
from infogan_ray.distributed.cluster.resources import (
    DIVIDED,
    LIMITED,
    REQUESTED,
    InsufficientResources,
    Resources,
    fit,
    max_concurrent_runs,
    room,
)
from infogan_ray.distributed.cluster.threads import cores, set_threads, thread_limit
from infogan_ray.distributed.train import checks
from infogan_ray.distributed.train.driver import Driver
from infogan_ray.distributed.train.head_monitor import WAITING_FOR_ROOM, HeadMonitor
from infogan_ray.distributed.train.trainer import _current_resources
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
def test_room_for_workers(bundle: dict[str, float], placement: str, places: int) -> None:
    assert room(bundle, CPU_ONLY, placement) == places


def test_room_for_fractions_of_a_gpu() -> None:
    assert room({"CPU": 1, "GPU": 0.5}, GPUS, "pack") == 6
    assert room({"CPU": 1, "GPU": 0.1}, [{"CPU": 16.0, "GPU": 1.0}], "pack") == 10  # rounding must not give 9


def test_a_gpu_fraction_must_fit_on_one_gpu() -> None:
    """Two GPUs have room for two workers with 0.6 each. A third worker would never start."""
    assert room({"CPU": 1, "GPU": 0.6}, [{"CPU": 16.0, "GPU": 2.0}], "pack") == 2
    with pytest.raises(InsufficientResources, match="workers is 4, more than the 3 available workers with 0.6 GPU"):
        fit(config(workers=4, gpus_per_worker=0.6), GPUS)


def test_a_run_on_gpus_does_not_continue_without_them() -> None:
    """The machine with the GPUs has died, and Ray Train requests the workers' resources again."""
    started_with = Resources(2, 1, "cuda")
    reports: list[dict[str, object]] = []
    driver = SimpleNamespace(in_trial=False, listen=reports.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_machines, "machines", lambda: CPU_ONLY)
        patch.setattr(ray, "is_initialized", lambda: True)
        with pytest.raises(ValueError, match="device is 'cuda', but no GPU was found"):
            _current_resources(config(workers=2), started_with, driver)  # type: ignore[arg-type]  # it uses nothing else of a driver


def test_waiting_for_room_is_reported_until_there_is_room() -> None:
    """Between two attempts Ray Train requests no room. An elastic run requests it only when there is enough."""

    def reported_phases(*seen: tuple[float, set[str] | None], elastic: bool = False) -> list[str]:
        head = HeadMonitor.__new__(HeadMonitor)
        driver, phases = Driver.__new__(Driver), list[str]()
        driver.head, driver.in_trial, driver.final, driver._waits_for_room = head, False, {}, False
        driver.listen = lambda report: phases.append(report["phase"])
        for silent, head.group_states in seen:
            driver._report_waiting(silent, elastic)
        return phases

    assert reported_phases((5, None), (12, None), (40, None)) == [], "not checked yet, or the head does not answer"
    assert reported_phases((12, {"CREATED"}), (400, {"CREATED"})) == [], "the workers are busy"
    waits = reported_phases((12, {"PENDING"}), (14, set()), (16, {"PENDING"}), (18, {"CREATED"}))
    assert waits == [WAITING_FOR_ROOM, "starting workers"]
    assert reported_phases((12, set()), (400, set())) == [], "a slow start"
    assert reported_phases((12, set()), (40, set()), (50, {"PENDING"}), elastic=True) == [WAITING_FOR_ROOM]


@pytest.mark.parametrize(
    ("workers", "placement", "runs"),
    [(2, "pack", 3), (2, "strict_pack", 3), (3, "strict_pack", 1), (2, "strict_spread", 2), (1, "strict_spread", 6),
     (7, "pack", 1)],
)  # fmt: skip
def test_number_of_runs_at_once(workers: int, placement: str, runs: int) -> None:
    assert max_concurrent_runs(Resources(workers, 1, "cpu", placement=placement), CPU_ONLY) == runs


def test_a_trials_workers_get_the_gpu_fraction_and_placement_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[Resources] = []
    monkeypatch.setattr(trials, "run_worker_group", lambda config, wanted, *rest, **more: requested.append(wanted))
    given = config(gpus_per_worker=0.5, placement="strict_spread", workers=2)
    settings = TrialSettings([], "", "cuda", "mi_fraction", 2)
    assert not list(_train_with_workers(given, None, None, settings))  # type: ignore[arg-type]  # only the replaced function uses them
    assert (requested[0].per_worker, requested[0].placement) == ({"CPU": 1, "GPU": 0.5}, "strict_spread")


@contextlib.contextmanager
def grpc_server() -> Iterator[str]:
    """A gRPC server without services; yields its address."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_an_embedded_ray_joins_no_other_cluster_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address Ray joins the latest cluster of this machine. If that has died, Ray waits for minutes."""
    requested: list[str | None] = []
    for name in (*connection.ENVIRONMENT, *connection.LOCAL_CLUSTER_ENVIRONMENT, "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "as it was")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address=None, **more: requested.append(address))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    connection.connect(None)
    with grpc_server() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        connection.connect(None)
    assert requested == ["local", None]
    assert os.environ["no_proxy"] == "as it was,localhost,127.0.0.1,::1,[::1]"


def test_what_libraries_print_goes_to_the_log_and_what_a_listener_prints_does_not(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ray"), connection.prints_in_log(print) as listen:
        print("a trial died")
        listen("a trial ended")
        print("another died")
    print("after")
    assert capsys.readouterr().out == "a trial ended\nafter\n"
    assert [record.getMessage() for record in caplog.records] == ["a trial died", "another died"]


def test_a_head_that_accepts_and_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(auth_check, "CONNECT_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        address = f"127.0.0.1:{frozen.getsockname()[1]}"
        with pytest.raises(UserError, match=f"'{address}', but .* accepts the connection and does not answer"):
            auth_check.check_address(address)
    with grpc_server() as address:
        auth_check.check_address(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(auth_check, "find_token", lambda: None)
    for given in ("auto", address):
        with pytest.raises(UserError, match="RAY_AUTH_MODE is 'token', but no token was found"):
            auth_check.check_address(given)


REFUSALS = (
    (
        ConnectionError("Failed to connect"),
        "no Ray cluster there accepts the connection; if it needs a token, export RAY_AUTH",
    ),
    (RuntimeError("Version mismatch:\n 2.9"), "RAY_ADDRESS is '127.0.0.1:[0-9]+': Version mismatch: 2.9; .*submit"),
)


def test_a_refused_connection_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process listens on the port, and Ray raises its own error."""
    for name in connection.ENVIRONMENT:
        monkeypatch.setenv(name, "as it was")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with grpc_server() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        for error, message in REFUSALS:

            def refused(error: Exception = error, **given: object) -> None:
                raise error

            monkeypatch.setattr(ray, "init", refused)
            with pytest.raises(UserError, match=message):
                connection.connect(None)
    assert auth_check.connection_error("head:6379", ZeroDivisionError("a bug")) is None


@pytest.mark.parametrize(("last", "stderr"), [("os._exit(1)", "infogan: a 'line' $HOME\n"), ("pass", "")])
def test_a_process_that_native_code_ends_says_why(last: str, stderr: str) -> None:
    script = f"""
import os
from infogan_ray.distributed.cluster.connection import explained_end
with explained_end("a 'line' $HOME"):
    {last}
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.stderr == stderr


def test_an_unreachable_cluster_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray itself would try for two minutes and print internal messages."""
    for name in connection.ENVIRONMENT:
        monkeypatch.setenv(name, "as it was")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **given: pytest.fail("ray.init is called"))
    monkeypatch.setattr(auth_check, "CONNECT_TIMEOUT_S", 1.0)
    [port] = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert main(["train", "--preset", "mnist", "--name", "nowhere"]) == 2
    output = capsys.readouterr().err
    assert output.startswith(f"infogan: RAY_ADDRESS is '127.0.0.1:{port}', but no Ray cluster answers there (")
    assert output.count("\n") == 1

    def interrupted(log: None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "connect", interrupted)
    assert main(["train", "--preset", "mnist", "--name", "nowhere"]) == INTERRUPTED
    assert capsys.readouterr().err == "infogan: interrupted before the run started\n"


def test_default_workers_follow_the_available_resources() -> None:
    assert fit(config(), CPU_ONLY).workers == 1
    wanted = fit(config(), GPUS)
    assert (wanted.workers, wanted.device, wanted.per_worker) == (3, "cuda", {"CPU": 1, "GPU": 1.0})
    halves = fit(config(workers=6, gpus_per_worker=0.5), GPUS)
    assert halves.per_worker == {"CPU": 1, "GPU": 0.5}
    assert fit(config(device="cpu", workers="1:4"), GPUS).per_worker == {"CPU": 1}
    assert fit(RunConfig(batch_size=12), CPU_ONLY).threads == 4, "not more than one machine has"


@pytest.mark.parametrize(
    ("changes", "nodes", "limit", "threads", "reason"),
    [
        ({}, [{"CPU": 8.0}], None, 8, DIVIDED),
        ({"workers": 3}, [{"CPU": 8.0}], None, 2, DIVIDED),
        ({"workers": 3}, [{"CPU": 8.0}], 1, 1, LIMITED),
        ({"workers": 3}, [{"CPU": 8.0}], 8, 2, DIVIDED),  # a limit above the cores has no effect
        ({"workers": 2, "threads": 3}, [{"CPU": 8.0}], 1, 3, REQUESTED),
        ({"workers": 4}, [{"CPU": 2.0}], None, None, ""),
        ({"workers": 2}, [{"CPU": 2.0}, {"CPU": 6.0}], None, 3, DIVIDED),  # with 4 threads each, only one fits
        ({"workers": 2, "placement": "strict_spread"}, [{"CPU": 2.0}, {"CPU": 6.0}], None, 2, DIVIDED),
        ({}, GPUS, None, 4, DIVIDED),  # two of the three workers share a machine with 8 CPUs
        ({"workers": "1:4"}, [{"CPU": 8.0}], None, 2, DIVIDED),
    ],
)  # fmt: skip
def test_threads_of_a_worker(
    changes: dict, nodes: list[dict[str, float]], limit: int | None, threads: int | None, reason: str
) -> None:
    if threads is None:
        with pytest.raises(InsufficientResources):
            fit(RunConfig(batch_size=24, **changes), nodes, limit)
        return
    wanted = fit(RunConfig(batch_size=24, **changes), nodes, limit)
    assert (wanted.threads, wanted.threads_from) == (threads, reason)


def test_an_embedded_cluster_respects_omp_num_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert resources(RunConfig(device="cpu")).threads == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert resources(RunConfig(device="cpu")).threads == machines()[0]["CPU"] <= cores()


@pytest.mark.parametrize(
    ("text", "threads"), [("4", 4), (" 2", 2), ("4,2", 4), ("", None), ("0", None), ("many", None)]
)
def test_omp_num_threads_is_parsed(text: str, threads: int | None) -> None:
    assert thread_limit({"OMP_NUM_THREADS": text}) == threads and thread_limit({}) is None


def test_threads_are_set_and_reported() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(1, DIVIDED).startswith("threads: 1 for each worker, the cores divided by the workers")
        assert torch.get_num_threads() == 1
        assert set_threads(cores() + 1, DIVIDED).startswith(f"threads: {cores()} for each worker")
        line = set_threads(cores() + 1, REQUESTED, requested=True)
        assert line.startswith(f"threads: {cores() + 1} for each worker, set by --threads")
        assert torch.get_num_threads() == cores() + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("changes", "nodes", "message"),
    [
        ({"workers": 8}, CPU_ONLY, "workers is 8, more than the 6 available CPUs; use 1 to 6"),
        ({"workers": 4, "device": "cuda"}, GPUS, "workers is 4, more than the 3 available GPUs; use 1 to 3"),
        ({"device": "cuda"}, CPU_ONLY, "device is 'cuda', but no GPU was found"),
        (
            {"workers": 3, "placement": "strict_spread"}, CPU_ONLY,
            "workers is 3 with 1 CPU each, placement 'strict_spread': 2 machines with 2 CPUs, 4 CPUs have room for 2",
        ),
        ({"workers": 6, "placement": "strict_pack"}, CPU_ONLY, "have room for 4; use fewer workers or --threads"),
    ],
)  # fmt: skip
def test_impossible_requests_are_refused_with_the_available_resources(
    changes: dict, nodes: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(InsufficientResources) as refused:
        fit(config(**changes), nodes)
    assert message in str(refused.value)


def test_without_a_cluster_no_run_waits_for_resources() -> None:
    with pytest.raises(ValueError, match=r"no GPU was found; use --device cpu \(or auto\)$"):
        resources(config(device="cuda", wait=600.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"placement": "spred"}, r"placement is 'spred' \(did you mean 'spread'\?\)"),
        ({"gpus_per_worker": 0}, "gpus_per_worker is 0; it must be above 0 and at most 1"),
        ({"gpus_per_worker": 2}, "gpus_per_worker is 2"),
        ({"wait": -1}, "wait is -1"),
        ({"wait": float("nan")}, "wait is nan"),
        ({"resize_every": 0}, "resize_every is 0; it must be a number of seconds above 0"),
    ],
)
def test_wrong_values_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_the_store_of_a_process_group_listens_on_rays_address_alone() -> None:
    address, port = open_store()
    listening = {c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.laddr.port == port and not c.raddr}
    assert (address, listening) == ("127.0.0.1", {"127.0.0.1"})
    assert not connection.listens_to_others()
    store = TCPStore(address, port)
    store.set("key", "value")
    assert TCPStore(address, port).get("key") == b"value"


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("198.51.100.1") == ""
    assert {name for _, name in socket.if_nameindex()} >= {"lo"}
