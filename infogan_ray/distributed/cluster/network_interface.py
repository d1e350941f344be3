"""Makes gloo and NCCL use the network interface that Ray uses."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

from ray.train.torch import TorchConfig

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


TorchBackend: Any = TorchConfig().backend_cls


class TorchBackendOnRayInterface(TorchBackend):
    """PyTorch's process group, on the network interface that Ray uses on each worker's machine."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


class TorchConfigOnRayInterface(TorchConfig):
    """Replaces TorchConfig if workers may be on several machines."""

    @property
    def backend_cls(self) -> type[TorchBackendOnRayInterface]:
        return TorchBackendOnRayInterface


def choose_interface() -> None:
    """Set the interface in each worker process before it connects to the others. Variables that are set stay.

    By default gloo uses the interface of the host's own name. On many machines this is the loopback interface. Then
    the workers of two machines wait for each other without end.
    """
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    for variable in INTERFACE_VARIABLES if name else ():
        os.environ.setdefault(variable, name)


def interface_of(address: str) -> str:
    """The name of the interface with an IPv4 address; empty if no interface has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:  # the interface has no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
