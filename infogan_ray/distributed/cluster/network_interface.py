"""The network interface that gloo and NCCL use: the one by which Ray's machines know each other."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

from ray.train.torch import TorchConfig

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
CHOSEN_BY = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


TorchBackend: Any = TorchConfig().backend_cls


class TorchBackendOnRaysInterface(TorchBackend):
    """PyTorch's process group, on the interface that Ray knows each worker's machine by."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


class TorchConfigOnRaysInterface(TorchConfig):
    """In place of a TorchConfig where workers may be on several machines."""

    @property
    def backend_cls(self) -> type[TorchBackendOnRaysInterface]:
        return TorchBackendOnRaysInterface


def choose_interface() -> None:
    """Runs in each worker process before it connects to the others. What the operator has set stays.

    By default gloo uses the interface that the host's own name resolves to. On many machines that is the loopback, and
    the workers of two machines wait for each other for ever.
    """
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    for variable in CHOSEN_BY if name else ():
        os.environ.setdefault(variable, name)


def interface_of(address: str) -> str:
    """The name of the interface with an IPv4 address; empty if no interface has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
