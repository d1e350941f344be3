"""infogan explore: shows a local web page with a slider for each code."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from dataclasses import dataclass
from typing import Annotated

import tyro

from infogan_ray import UserError
from infogan_ray.cli.exit_codes import DONE, Failed
from infogan_ray.cli.flags import extra, parse
from infogan_ray.cli.output import print_progress, print_result
from infogan_ray.data.datasets import NAMES, DataConfig, load_images
from infogan_ray.storage.file_system import open_storage

PORT = 8710


@dataclass
class Explore:
    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL_OR_STORAGE")]
    """A model folder, a run (STORAGE/NAME), a search, or STORAGE for all its runs. Runs may still be training."""
    data: str | None = None
    """Real images to show: a dataset's name or a path. By default the data that the model was trained on."""
    data_dir: str | None = None
    """Folder to search first for a named dataset."""
    host: str = "127.0.0.1"
    """Address to listen on. Any address except the loopback needs a token: $INFOGAN_TOKEN, or else a random one."""
    port: int = PORT
    """Port to listen on; 0 selects a free port."""
    open: bool = False
    """Also open a browser."""


def explore(arguments: list[str]) -> int:
    given = parse(
        Explore,
        "explore",
        arguments,
        "Show a web page with a slider for each code. It needs no internet. By default only this machine can open it.",
        [
            "explore first-model",
            "explore runs",
        ],
    )
    with extra("serve", "the explorer"):
        import uvicorn

        from infogan_ray.web.explorer.app import make_app
        from infogan_ray.web.explorer.auth import LOOPBACK
        from infogan_ray.web.explorer.model_catalog import ModelCatalog
        from infogan_ray.web.gateway import MIN_TOKEN_LENGTH, TOKEN, service_token
    if not 0 <= given.port <= 65535:
        raise UserError(f"port is {given.port}; valid are 0 to 65535, and 0 selects a free port")
    root = open_storage(given.what)
    if root.path_is_file or (root.is_local and not os.path.isdir(root.path)):
        problem = "is a file" if root.path_is_file else "does not exist"
        raise UserError(f"{root} {problem}; name a model folder, a run (STORAGE/NAME), a search or a folder of them")
    if given.data is not None:
        if given.data in NAMES:  # fetched now with progress, and not while a browser waits
            load_images(given.data, DataConfig(given.data_dir), say=print_progress)
        elif not os.path.exists(os.path.expanduser(given.data)):
            raise UserError(f"data is '{given.data}': neither a dataset ({', '.join(NAMES)}) nor a path that exists")
    catalog = ModelCatalog(root, given.data, given.data_dir)
    token = service_token()
    if given.host not in LOOPBACK and token is None:
        token = secrets.token_urlsafe(24)
    if token is not None and len(token) < MIN_TOKEN_LENGTH:
        raise UserError(f"{TOKEN} has {len(token)} characters; it must have at least {MIN_TOKEN_LENGTH}")
    with _listen(given.host, given.port) as listener:
        address = _address(given.host, listener.getsockname()[1], token)
        print_result(f"explorer of {root}: {address}")
        if os.environ.get("SSH_CONNECTION") and given.host in LOOPBACK:
            port = listener.getsockname()[1]
            print_result(f"from your own machine: ssh -L {port}:127.0.0.1:{port} THIS_HOST, then open this link")
        print_result("press Ctrl-C to stop")
        if given.open:
            import webbrowser

            webbrowser.open(address)
        server = uvicorn.Server(
            uvicorn.Config(make_app(catalog, token), log_level="warning", lifespan="off", ws="none")
        )
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    return DONE


def _listen(host: str, port: int) -> socket.socket:
    """Open a socket. Raises Failed for a port in use, UserError for an address that is not this machine's."""
    try:
        [(family, kind, _, _, where), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"host is '{host}', which is not an address ({error.strerror})") from None
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(where)
        listener.listen()  # before the address is printed, so that an early browser waits
    except OSError as error:
        listener.close()
        reason = f"cannot listen on {host}:{port} ({error.strerror})"
        raise Failed(f"{reason}; give another --port, or 0 for a free port") from None
    return listener


def _address(host: str, port: int, token: str | None) -> str:
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
