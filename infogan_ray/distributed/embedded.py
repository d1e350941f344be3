"""Ray Train on an embedded Ray, without what it starts for clusters.

Of the processes that Ray Train starts before the first step, four are of no use where Ray lives and dies with the
command: an autoscaler's coordinator, for which the workers wait; one for datasets of Ray Data; one that looks out for
machines that are taken away; and the cleaner of placement groups, which asks a dashboard that an embedded Ray does not
have. Each costs as much as importing Ray Train does. Three of them have no public switch, so this names private parts
of Ray; its version is pinned. What the cleaner is for, ``freed`` does. Of Ray's own services three are of no use there
either (``without_services``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.node import Node
from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.torch.torch_trainer import TorchTrainer  # which ray.train.torch types as the older class
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from infogan_ray.distributed.light import Unannounced

NOWHERE = b"127.0.0.1:9"  # RFC 863: discarded
# No machine is taken away from under it alone.
ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def is_embedded() -> bool:
    """Whether this process has started the Ray that it is connected to, which ends with it."""
    node = ray._private.worker._global_node
    return node is not None and node.is_head()


@contextmanager
def without_services() -> Iterator[None]:
    """A Ray that is started inside has no autoscaler, nobody who passes logs on, and no dashboard."""
    replaced: dict[tuple[Any, str], Callable[..., Any]] = {
        (Node, "start_monitor"): _nothing,
        (Node, "start_log_monitor"): _nothing,
        (Node, "start_api_server"): _no_dashboard,
        # As where the dashboard's packages are not installed, its agent starts without a server of its own.
        (ray._private.utils, "get_dashboard_dependency_error"): ImportError,
    }
    before = {place: getattr(*place) for place in replaced}
    try:
        for place, function in replaced.items():
            setattr(*place, function)
        yield
    finally:
        for place, function in before.items():
            setattr(*place, function)


def _nothing(node: Node) -> None:
    pass


def _no_dashboard(node: Node, **about: Any) -> None:
    """Its agent asks for an address each second, with a traceback in its log, until there is one."""
    node.get_gcs_client().internal_kv_put(DASHBOARD_ADDRESS.encode(), NOWHERE, True, KV_NAMESPACE_DASHBOARD)


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
