"""Whether a Ray cluster answers at an address and lets us in, asked before Ray does: it tries for 20 s or longer, line
after line, and ends without a word that says what to do. Imports no torch.
"""

from __future__ import annotations

import os
import time

import grpc  # which ray[default] brings
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # compiled
from ray.exceptions import AuthenticationError

from infogan_ray import UserError
from infogan_ray.distributed.submission.dashboard import TOKEN, TOKEN_PATH, find_token

ANSWERS_WITHIN_S, TRIES_EVERY_S = 10.0, 1.0
ASKS = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # what every client of a head asks first; the request is empty
MODE = "RAY_AUTH_MODE"
PLACES = f"{TOKEN_PATH}=FILE, {TOKEN} or ~/.ray/auth_token"


def see_that_we_get_in(address: str) -> None:
    """Ask the head at ``HOST:PORT``, which may be about to start; of other forms Ray says itself what it does not like.

    Raises UserError, in one line.
    """
    _, _, port = address.rpartition(":")
    if "/" in address or not port.isdecimal():
        return
    if int(port) >= 2**16:
        raise UserError(nobody(address, "ports end at 65535"))
    has_token = os.environ.get(MODE, "").lower() == "token"
    if has_token and find_token() is None and not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        raise UserError(f"{MODE} is 'token', and there is none; give it by {PLACES}")
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while (error := _ask(address)) is not None:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise UserError(
                f"RAY_ADDRESS is '{address}', and the cluster there does not take our token; give its own by {PLACES}"
                if has_token
                # Ray sends none to an address that is written out unless it is told to, though it has started the
                # cluster with the one that it has found.
                else f"RAY_ADDRESS is '{address}', and the cluster there asks for a token: export {MODE}=token, and "
                f"give it by {PLACES}"
            )
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:  # somebody is there, and slow: Ray may know more
            return
        if time.monotonic() + TRIES_EVERY_S > deadline:
            raise UserError(nobody(address, error.details() or error.code().name))
        time.sleep(TRIES_EVERY_S)


def nobody(address: str | None, why: object) -> str:
    """What to say where there is no cluster."""
    return (
        f"RAY_ADDRESS is '{address}', and no Ray cluster answers there ({why}); start one, or unset RAY_ADDRESS to "
        "do without"
    )


def _ask(address: str) -> grpc.Call | None:
    """What is wrong, or None. As Ray asks: by TLS and with a token where its variables say so."""
    try:
        with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
            channel.unary_unary(ASKS)(b"", timeout=ANSWERS_WITHIN_S)
    except grpc.RpcError as error:
        return error
    except AuthenticationError as error:  # of a token that Ray does not find where we do
        raise UserError(f"{MODE} is 'token': {' '.join(str(error).split())}") from None
    except (OSError, RuntimeError) as error:  # certificates
        raise UserError(f"RAY_USE_TLS is set: {error}") from None
    return None
