"""What Ray Train's controller is handed. It is a process of its own for which the workers wait, so no torch here: that
import is half of its start."""

from __future__ import annotations

from typing import Any

from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class Alone(Backend):
    """Nothing to set up. As with torch's own, CUDA_VISIBLE_DEVICES is set even where Ray is told to leave it alone."""

    share_cuda_visible_devices = True


class OneWorker(BackendConfig):
    """In place of a TorchConfig where there is nobody to talk to: no process group."""

    backend = "none"  # which a TorchTrainer asks for

    @property
    def backend_cls(self) -> type[Backend]:
        return Alone

    @property
    def train_func_context(self) -> Any:
        """Asked for by the driver: the worker's GPU is its default device, as with a TorchConfig."""
        from ray.train.torch import TorchConfig

        return TorchConfig().train_func_context


class Unannounced(FixedScalingPolicy):
    """So many workers, of which no autoscaler needs to know."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass
