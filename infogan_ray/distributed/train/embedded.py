"""Ray Train on an embedded Ray, without what it starts for clusters.

Of the processes that Ray Train starts before the first step, four are of no use where Ray lives and dies with the
command: an autoscaler's coordinator, for which the workers wait; one for datasets of Ray Data; one that looks out for
machines that are taken away; and the cleaner of placement groups, which asks a dashboard that an embedded Ray does not
have. Each costs as much as importing Ray Train does. Three of them have no public switch, so this names private parts
of Ray; its version is pinned. What the cleaner is for, ``freed`` does. Of Ray's own services four are of no use there
either (``without_services``).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, partialmethod
from typing import Any
from unittest import mock

import ray
from ray._private import services
from ray._private.node import Node
from ray._private.ray_constants import PROCESS_TYPE_DASHBOARD_AGENT
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.torch.torch_trainer import TorchTrainer  # which ray.train.torch types as the older class
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from infogan_ray.distributed.train.light import Unannounced

WAIT = "while kill -0 $PPID 2>/dev/null; do sleep 1; done"
# No machine is taken away from under it alone.
ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def is_embedded() -> bool:
    """Whether this process has started the Ray that it is connected to, which ends with it."""
    node = ray._private.worker._global_node
    return node is not None and node.is_head()


@contextmanager
def out_of_the_terminal() -> Iterator[None]:
    """Ctrl-C in a terminal goes to all processes of its foreground group at once. It is for this one, which has the
    others end their work in order: Ray's own and its workers would die of it, and this one with them."""
    apart = partial(services.ConsolePopen, start_new_session=True)
    with mock.patch.object(services, "ConsolePopen", apart):
        yield


@contextmanager
def without_services() -> Iterator[None]:
    """A Ray that is started inside has no autoscaler, nobody who passes logs on, no dashboard, and no agent of it.

    The raylet, and with it all workers, would wait for the ports of two agents, each of which imports Ray first. Then
    this process would wait until two workers have done so, of which neither becomes the controller or a trainer, since
    these have an environment of their own.
    """
    with socket.socket() as held:  # not listening: the agent that is told of its port can bind it, and nobody else
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("", 0))
        replaced: dict[tuple[Any, str], Any] = {
            (Node, "start_monitor"): _nothing,
            (Node, "start_log_monitor"): _nothing,
            (Node, "start_api_server"): _nothing,
            (Node, "start_raylet"): partialmethod(_with_known_ports, Node.start_raylet, held.getsockname()[1]),
            (services, "_build_python_executable_command_memory_profileable"): partial(
                _command, services._build_python_executable_command_memory_profileable
            ),
            (ray._private.utils, "get_dashboard_dependency_error"): ImportError,  # it would import the dashboard's
        }
        with contextlib.ExitStack() as undo:
            undo.enter_context(mock.patch.dict(os.environ, {"RAY_prestart_worker_first_driver": "0"}))
            for (place, name), function in replaced.items():
                undo.enter_context(mock.patch.object(place, name, function))
            yield


def _nothing(node: Node, **about: Any) -> None:
    pass


def _with_known_ports(node: Node, start: Callable[..., None], environments: int, *given: Any, **named: Any) -> None:
    """As the agents would leave word: -1 for what is not there, as where the dashboard's packages are missing."""
    compiled: Any = ray._raylet
    for service in ("METRICS_AGENT", "METRICS_EXPORT", "DASHBOARD_AGENT_LISTEN"):
        compiled.persist_port(node._session_dir, node._node_id, getattr(compiled, f"{service}_PORT_NAME"), -1)
    node._ray_params.runtime_env_agent_port = environments
    start(node, *given, **named)


def _command(build: Callable[..., list[str]], component: str, *given: Any, **named: Any) -> list[str]:
    """How to run a part of Ray; the dashboard's agent, without which no raylet runs, is a shell that waits for its
    end. What follows in the command are arguments that the shell leaves alone."""
    return ["sh", "-c", WAIT] if component == PROCESS_TYPE_DASHBOARD_AGENT else build(component, *given, **named)


@contextmanager
def freed() -> Iterator[None]:
    """Frees in the end what was set aside for workers meanwhile and not given back: a controller that dies cannot, and
    those who start again would wait for it in vain."""
    before = set(_placement_groups())
    yield
    if not ray.is_initialized():  # a run that was stopped may have ended it; to be asked, it would start anew
        return
    for name in set(_placement_groups()) - before:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def _placement_groups() -> list[str]:
    return [name for name, about in placement_group_table().items() if about["state"] != "REMOVED"]


class EmbeddedTrainer(TorchTrainer):
    """A TorchTrainer for ``is_embedded()`` that has no datasets of Ray Data."""

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        parts["callbacks"] = [part for part in parts["callbacks"] if not isinstance(part, needless)]
        policy = parts["scaling_policy"]
        if isinstance(policy, FixedScalingPolicy):  # one for a range of workers asks what there is
            parts["scaling_policy"] = Unannounced(scaling_config=policy.scaling_config)
        return super()._initialize_and_run_controller(**parts)
