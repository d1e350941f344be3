"""infogan explore: a local page with a slider per code."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from dataclasses import dataclass

import tyro

from infogan_ray import UserError
from infogan_ray.cli.display import print_progress
from infogan_ray.cli.exit_codes import DONE, Failed
from infogan_ray.cli.flags import extra, parse
from infogan_ray.data.datasets import NAMES, DataConfig, load_images
from infogan_ray.storage.file_system import open_storage

PORT = 8710


@dataclass
class Explore:
    what: tyro.conf.Positional[str]
    """A model folder, a run (STORAGE/NAME), a search, or STORAGE: all that lies there, while it trains, too."""
    data: str | None = None
    """Images to pick real ones from, in place of those that a model was trained on: a dataset's name or a path."""
    data_dir: str | None = None
    """Folder to look for a named dataset first."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but the loopback needs a token: $INFOGAN_TOKEN, or else a random one."""
    port: int = PORT
    """0 takes a free one."""
    open: bool = False
    """Open a browser, too."""


def explore(arguments: list[str]) -> int:
    given = parse(
        Explore, "explore", arguments,
        "A page with a slider per code. It needs no network, and nobody else can open it. "
        "Example: infogan explore first-model",
    )  # fmt: skip
    with extra("serve", "the explorer"):
        import uvicorn

        from infogan_ray.web.explorer.app import make_app
        from infogan_ray.web.explorer.auth import LOOPBACK
        from infogan_ray.web.explorer.model_catalog import ModelCatalog
        from infogan_ray.web.gateway import LEAST_TOKEN, TOKEN, service_token
    if not 0 <= given.port <= 65535:
        raise UserError(f"port is {given.port}; valid are 0 to 65535, and 0 takes a free one")
    root = open_storage(given.what)
    if root.path_is_file or (root.is_local and not os.path.isdir(root.path)):
        what = "is a file" if root.path_is_file else "does not exist"
        raise UserError(f"{root} {what}; name a model folder, a run (STORAGE/NAME), a search or a folder of them")
    if given.data is not None:
        if given.data in NAMES:  # fetched now, with its progress shown, and not while a browser waits
            load_images(given.data, DataConfig(given.data_dir), say=print_progress)
        elif not os.path.exists(os.path.expanduser(given.data)):
            raise UserError(f"data is '{given.data}': neither a dataset ({', '.join(NAMES)}) nor a path that exists")
    catalog = ModelCatalog(root, given.data, given.data_dir)
    token = service_token()
    if given.host not in LOOPBACK and token is None:
        token = secrets.token_urlsafe(24)
    if token is not None and len(token) < LEAST_TOKEN:
        raise UserError(f"{TOKEN} has {len(token)} characters; it must have at least {LEAST_TOKEN}")
    with _listen(given.host, given.port) as listener:
        address = _address(given.host, listener.getsockname()[1], token)
        print(f"explorer of {root}: {address}", flush=True)
        if os.environ.get("SSH_CONNECTION") and given.host in LOOPBACK:
            port = listener.getsockname()[1]
            print(f"from your own machine: ssh -L {port}:127.0.0.1:{port} THIS_HOST, then the same link", flush=True)
        print("Ctrl-C ends it", flush=True)
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
    """Raises Failed for a port that is taken, UserError for an address that is not this machine's."""
    try:
        [(family, kind, _, _, where), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"host is '{host}', which is no address ({error.strerror})") from None
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(where)
        listener.listen()  # before the address is printed, so that a browser which is too early waits
    except OSError as error:
        listener.close()
        why = f"cannot listen at {host}:{port} ({error.strerror})"
        raise Failed(f"{why}; give another --port, or 0 for a free one") from None
    return listener


def _address(host: str, port: int, token: str | None) -> str:
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
