"""infogan doctor: what this machine or a cluster can do, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from infogan_ray.cli import display
from infogan_ray.cli.display import warn
from infogan_ray.cli.exit_codes import DONE, FAILED
from infogan_ray.cli.flags import parse
from infogan_ray.distributed.submission.registry import backend_of


@dataclass
class Doctor:
    cluster: str | None = None
    """http://HOST:8265, or another value of 'infogan submit --cluster': look at that cluster instead of this machine.
    Of a Ray head this says whether strangers can run code there."""
    json: bool = False


def doctor(arguments: list[str]) -> int:
    given = parse(Doctor, "doctor", arguments, "Look at this machine, or at a cluster. Example: infogan doctor")
    if given.cluster:
        backend = backend_of(given.cluster)
        findings = backend(given.cluster, backend.FLAGS(), warn).examine()
    else:
        from infogan_ray.distributed.cluster.doctor import examine

        findings = examine()
    if given.json:
        print(json.dumps({"findings": [dataclasses.asdict(found) for found in findings]}))
    else:
        display.table(
            "doctor", ["", "what", "finding"], [[found.mark, found.what, found.finding] for found in findings]
        )
    return FAILED if any(found.mark == "bad" for found in findings) else DONE
