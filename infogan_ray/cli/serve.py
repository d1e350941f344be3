"""infogan serve: runs a trained model as a web service on this machine."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import threading
from dataclasses import dataclass
from typing import Any

from infogan_ray import UserError
from infogan_ray.cli.exit_codes import DONE, Failed
from infogan_ray.cli.flags import Model, extra, parse
from infogan_ray.cli.output import print_result, warn


@dataclass
class Serve:
    model: Model
    host: str = "127.0.0.1"
    """Address to listen on. Any address except the loopback needs $INFOGAN_TOKEN."""
    port: int = 8000
    """Port to listen on."""
    replicas: int = 1
    """Processes with the model, one thread each. With two or more, requests continue if one dies."""


def serve(arguments: list[str]) -> int:
    given = parse(
        Serve,
        "serve",
        arguments,
        "Answer /sample, /traverse and /encode over HTTP.",
        [
            "serve first-model",
            "serve s3://bucket/runs/first --port 8000",
        ],
    )
    with extra("serve", "the service"):
        from infogan_ray.distributed.serve.service import ServiceFailed, check_token, serving
        from infogan_ray.web.gateway import TOKEN, service_token
    from infogan_ray.training.load_model import load

    token = service_token()
    loopback = _is_loopback(given.host)
    if token or not loopback:
        check_token(token)
    _check(given)
    load(given.model, warn)  # raises for a bad model before Ray starts
    path = os.path.abspath(os.path.expanduser(given.model)) if "://" not in given.model else given.model
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with serving(path, given.host, given.port, given.replicas, open_to_all=loopback):
            shown = f"[{given.host}]" if ":" in given.host else given.host
            header = f' -H "Authorization: Bearer ${TOKEN}"' if token else ""
            print_result(f"{given.model} at http://{shown}:{given.port}; press Ctrl-C to stop")
            print_result(f"""curl{header} http://{shown}:{given.port}/sample -d '{{"n": 16}}' -o samples.png""")
            stop.wait()
    except ServiceFailed as error:
        raise Failed(f"the service did not start: {error}") from None
    return DONE


def _check(given: Serve) -> None:
    """Check the flags and the environment. Raises UserError."""
    if os.environ.get("RAY_ADDRESS"):
        raise UserError(
            "RAY_ADDRESS is set, but serve starts its own local Ray; unset it, or deploy "
            "infogan_ray.distributed.serve.service:app on that cluster as cluster/kuberay/rayservice.yaml does"
        )
    cpus = os.cpu_count() or 1
    if not 1 <= given.replicas <= cpus:
        raise UserError(f"replicas is {given.replicas}; each needs a CPU, so use 1 to {cpus}")
    if not 1 <= given.port <= 65535:
        raise UserError(f"port is {given.port}; valid are 1 to 65535")
    try:
        found: Any = socket.getaddrinfo(given.host, given.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"port is {given.port}, but listening on host '{given.host}' failed ({reason})") from None


def _is_loopback(host: str) -> bool:
    with_name = host == "localhost"
    try:
        return with_name or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
