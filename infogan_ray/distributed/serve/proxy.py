"""Runs the gateway in Ray Serve's HTTP proxies and sends its calls to the replicas. No torch: proxies load this module.

Serve calls ``middlewares`` in each proxy whose environment contains ``CALLBACK_VARIABLE=CALLBACK``.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.middleware import Middleware

from infogan_ray.web.gateway import Call, Gateway, ReplicaDied, ReplicasBusy, Reply, service_token

# Ray Serve's environment variables for its proxies, and our values.
CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "infogan_ray.distributed.serve.proxy.middlewares"
HEALTH_PERIOD_VARIABLE = "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"
HEALTH_PERIOD_S = "1"  # a dead proxy is replaced after three checks; Serve's default takes 30 s
APPLICATION, DEPLOYMENT = "infogan", "Model"


def middlewares() -> list[Middleware]:
    return [Middleware(Gateway, call_replica=Replicas(), token=service_token())]


class Replicas:
    """Sends a call to one replica's method. Serve's own HTTP path would need two more calls for each body."""

    @cached_property
    def _answer(self) -> Any:
        return serve.get_deployment_handle(DEPLOYMENT, APPLICATION, _check_exists=False).answer

    async def __call__(self, call: Call) -> Reply:
        try:
            return await self._answer.remote(call)
        except BackPressureError:
            raise ReplicasBusy("too many requests are waiting") from None
        except DeploymentUnavailableError:
            raise ReplicasBusy("the model has not started; see the reason with 'serve status'") from None
        except RayTaskError:
            raise  # a bug in the deployment; the replica is alive
        except RayError as error:  # the actor or its node died, perhaps after the reply was computed
            raise ReplicaDied(str(error)) from None
