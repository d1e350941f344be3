"""Checks the address and the token of a Ray cluster, and explains Ray's connection errors. No torch."""

from __future__ import annotations

import os
import socket
import time

import grpc  # comes with ray[default]
from ray.exceptions import AuthenticationError

from infogan_ray import UserError
from infogan_ray.distributed.submission.dashboard import DEFAULT_TOKEN_PATH, TOKEN, TOKEN_PATH, find_token

CONNECT_TIMEOUT_S, RETRY_INTERVAL_S = 10.0, 1.0
AUTH_MODE = "RAY_AUTH_MODE"
TOKEN_SOURCES = f"{TOKEN_PATH}=FILE, {TOKEN} or {DEFAULT_TOKEN_PATH}"


def check_address(address: str) -> None:
    """Connect to ``HOST:PORT`` by TCP and then gRPC, each for CONNECT_TIMEOUT_S. Ray itself would retry for minutes.

    Other forms, such as ``auto``, are not tried. Raises UserError, in one line, also if the token is missing.
    """
    if token_required() and find_token() is None:
        raise UserError(f"{AUTH_MODE} is 'token', but no token was found; set it by {TOKEN_SOURCES}")
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdecimal():
        return
    if int(port) >= 2**16:
        raise UserError(no_cluster_message(address, "the largest port is 65535"))
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
            break
        except OSError as error:
            if time.monotonic() + RETRY_INTERVAL_S > deadline:
                raise UserError(no_cluster_message(address, error.strerror or error)) from None
        time.sleep(RETRY_INTERVAL_S)
    if os.environ.get("RAY_USE_TLS", "").lower() not in ("1", "true") and not _answers(address):
        raise UserError(no_cluster_message(address, "something accepts the connection and does not answer"))


def _answers(address: str) -> bool:
    """Whether a gRPC server answers in time. Ray would wait for a frozen head for minutes, and delay SIGTERM."""
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def connection_error(address: str, error: Exception) -> UserError | None:
    """Explain an error of ``ray.init`` to the user; None for an error of another kind.

    Ray raises the same error for a wrong token, a missing token, and another service at the address.
    """
    text = " ".join(str(error).split())
    if isinstance(error, AuthenticationError):  # no token, or a file that cannot be read
        return UserError(f"{AUTH_MODE} is 'token': {text}")
    if isinstance(error, ConnectionError) and token_required():
        return UserError(
            f"RAY_ADDRESS is '{address}', but its cluster refused the token; set the right one by {TOKEN_SOURCES}"
        )
    if isinstance(error, ConnectionError):
        return UserError(
            f"RAY_ADDRESS is '{address}', but no Ray cluster there accepts the connection; if it needs a token, "
            f"export {AUTH_MODE}=token and set the token by {TOKEN_SOURCES}"
        )
    if isinstance(error, RuntimeError) and "Version mismatch" in text:  # of Ray or Python; Ray compares all three parts
        return UserError(
            f"RAY_ADDRESS is '{address}': {text}; install the cluster's versions here, or start the run there: "
            "infogan submit -- train …"
        )
    if isinstance(error, (OSError, RuntimeError)):  # certificates
        return UserError(f"RAY_ADDRESS is '{address}': {text}")
    return None


def token_required() -> bool:
    return os.environ.get(AUTH_MODE, "").lower() == "token"


def no_cluster_message(address: str, reason: object) -> str:
    return (
        f"RAY_ADDRESS is '{address}', but no Ray cluster answers there ({reason}); start one, or unset RAY_ADDRESS "
        "to train without a cluster"
    )


def no_node_message(address: str) -> str:
    """What a process that Ray ends while it connects has probably done: it runs on a machine outside the cluster."""
    return (
        f"RAY_ADDRESS is '{address}', and Ray ended this process, probably because no Ray node runs on this machine; "
        "run the command on a node of the cluster, or send it there: infogan submit --cluster URL -- train …"
    )
