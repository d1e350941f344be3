"""The front in Ray Serve's HTTP proxies, and its way to the replicas. No torch: every proxy loads this.

Serve calls ``middlewares`` in each proxy that has ``CALLBACK=HERE`` in its environment.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.middleware import Middleware

from infogan_ray.web.gateway import APPLICATION, DEPLOYMENT, Busy, Call, Died, Front, Reply, token_set


def middlewares() -> list[Middleware]:
    return [Middleware(Front, ask=Replicas(), token=token_set())]


class Replicas:
    """Asks one replica. A plain call: Serve's own HTTP path sends each body by two more calls, at twice the cost."""

    @cached_property
    def _answer(self) -> Any:
        return serve.get_deployment_handle(DEPLOYMENT, APPLICATION, _check_exists=False).answer

    async def __call__(self, call: Call) -> Reply:
        try:
            return await self._answer.remote(call)
        except BackPressureError:
            raise Busy("too many requests are waiting") from None
        except DeploymentUnavailableError:
            raise Busy("the model has not started; see its reason with 'serve status'") from None
        except RayTaskError:
            raise  # a bug of ours: nobody's death
        except RayError as error:  # the actor or its node died, or what it answered was lost with them
            raise Died(str(error)) from None
