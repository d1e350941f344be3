"""The HTTP proxies of the environment: which addresses are reached through one.

A token goes to the named host alone. A proxy reads what plain HTTP sends, so loopback and plain HTTP are reached
directly. With HTTPS a proxy sees only the host's name. ``$no_proxy`` is honoured, and tells the decision to other
libraries and to child processes.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import urllib.parse
from dataclasses import dataclass

NO_PROXY = ("no_proxy", "NO_PROXY")  # libraries differ in the one that they read first
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Route:
    """How a host is reached. ``proxy``: the proxy's URL, empty without one. ``remark``: a line to say, or empty."""

    proxy: str = ""
    remark: str = ""


def settle_route(url: str) -> Route:
    """Choose the route to an address that gets a secret, and add a host that is reached directly to ``$no_proxy``.

    Addresses other than http:// and https:// have no proxy.
    """
    host = urllib.parse.urlsplit(url).hostname
    proxy = proxy_of(url) if url.startswith(("http://", "https://")) else ""
    if not proxy or not host:
        return Route()
    shown = proxy.rpartition("@")[2].rpartition("://")[2]  # without the proxy's password
    if is_loopback(host):
        bypass(host)
        return Route()
    if url.startswith("http://"):
        bypass(host)
        return Route(remark=f"{host} is reached directly: over http the proxy {shown} would read the token")
    return Route(proxy, f"{host} is reached through the proxy {shown}; NO_PROXY={host} reaches it directly")


def proxy_of(url: str) -> str:
    """The proxy that the environment names for a URL; empty without one."""
    import requests.utils  # comes with ray; the same rules as in Ray's and MLflow's clients

    return requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url)) or ""


def bypass(*hosts: str) -> None:
    """Add hosts to ``$no_proxy`` of this process and of those that it starts."""
    names = [name for host in hosts for name in ((host, f"[{host}]") if ":" in host else (host,))]
    lower, upper = (os.environ.get(variable, "") for variable in NO_PROXY)
    for variable, value in zip(NO_PROXY, (lower or upper, upper or lower), strict=True):
        listed = [entry.strip() for entry in value.split(",") if entry.strip()]
        if listed != ["*"]:
            os.environ[variable] = ",".join([*listed, *(name for name in names if name not in listed)])


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine alone."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in found)
