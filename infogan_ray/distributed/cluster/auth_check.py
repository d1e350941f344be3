"""Whether a Ray cluster listens at an address, asked before Ray does, and Ray's refusals in our words. No torch."""

from __future__ import annotations

import os
import socket
import time

from ray.exceptions import AuthenticationError

from infogan_ray import UserError
from infogan_ray.distributed.submission.dashboard import TOKEN, TOKEN_PATH, find_token

ANSWERS_WITHIN_S, TRIES_EVERY_S = 10.0, 1.0
MODE = "RAY_AUTH_MODE"
PLACES = f"{TOKEN_PATH}=FILE, {TOKEN} or ~/.ray/auth_token"


def check_address(address: str) -> None:
    """Connect to ``HOST:PORT`` by TCP, since Ray itself tries for minutes. A head may be about to start.

    Addresses of another form are Ray's to check. Raises UserError, in one line.
    """
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdecimal():
        return
    if int(port) >= 2**16:
        raise UserError(no_cluster(address, "ports end at 65535"))
    if asks_for_token() and find_token() is None:
        raise UserError(f"{MODE} is 'token', and there is none; give it by {PLACES}")
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS_WITHIN_S).close()
            return
        except OSError as error:
            if time.monotonic() + TRIES_EVERY_S > deadline:
                raise UserError(no_cluster(address, error.strerror or error)) from None
        time.sleep(TRIES_EVERY_S)


def refusal(address: str, error: Exception) -> UserError | None:
    """What a user can do about an error of ``ray.init``; None for an error of another kind.

    Ray says the same of a wrong token, of none, and of another service that listens there.
    """
    text = " ".join(str(error).split())
    if isinstance(error, AuthenticationError):  # no token, or a file that cannot be read
        return UserError(f"{MODE} is 'token': {text}")
    if isinstance(error, ConnectionError) and asks_for_token():
        return UserError(
            f"RAY_ADDRESS is '{address}', and the cluster there does not take our token; give its own by {PLACES}"
        )
    if isinstance(error, ConnectionError):
        return UserError(
            f"RAY_ADDRESS is '{address}', and no Ray cluster there lets us in; if it asks for a token, export "
            f"{MODE}=token, and give it by {PLACES}"
        )
    if isinstance(error, (OSError, RuntimeError)):  # certificates, another version of Ray
        return UserError(f"RAY_ADDRESS is '{address}': {text}")
    return None


def asks_for_token() -> bool:
    return os.environ.get(MODE, "").lower() == "token"


def no_cluster(address: str, why: object) -> str:
    return (
        f"RAY_ADDRESS is '{address}', and no Ray cluster answers there ({why}); start one, or unset RAY_ADDRESS to "
        "do without"
    )
