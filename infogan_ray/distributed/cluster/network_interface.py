"""Makes gloo, NCCL and their store use the network interface that Ray uses."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


_store: TCPStore | None = None  # a store ends with its last reference

TorchBackend: Any = TorchConfig().backend_cls


class TorchBackendOnRayInterface(TorchBackend):
    """PyTorch's process group, on the network interface that Ray uses on each worker's machine.

    Its store requires no token. The base class would let the store listen on all interfaces.
    """

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        backend = backend_config.backend or "nccl"
        timeout = timedelta(seconds=backend_config.timeout_s)
        worker_group.execute(choose_interface)
        store = worker_group.execute_single(0, open_store)
        joined = [
            worker_group.execute_single_async(rank, join_group, backend, rank, len(worker_group), store, timeout)
            for rank in range(len(worker_group))
        ]
        ray.get(joined)


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
    name = interface_of(ray.util.get_node_ip_address())
    for variable in INTERFACE_VARIABLES if name else ():
        os.environ.setdefault(variable, name)


def open_store() -> tuple[str, int]:
    """Start the group's store in this process, on the address that Ray uses. Returns its address and port."""
    global _store
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError:  # the address that others use is not this machine's own, for example behind a NAT
        listener = socket.create_server(("", 0), family=family)
    port = listener.getsockname()[1]
    _store = TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    return address, port


def join_group(backend: str, rank: int, world_size: int, store: tuple[str, int], timeout: timedelta) -> None:
    """Join the process group as one rank."""
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # a lost rank ends the others, as in Ray Train
    client = TCPStore(*store, world_size, timeout=timeout)
    dist.init_process_group(backend, store=client, rank=rank, world_size=world_size, timeout=timeout)


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
