"""infogan doctor: checks this machine or a cluster."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from infogan_ray.cli import display
from infogan_ray.cli.exit_codes import DONE, FAILED
from infogan_ray.cli.flags import parse
from infogan_ray.cli.output import print_json, warn
from infogan_ray.distributed.submission.registry import backend_of


@dataclass
class Doctor:
    cluster: str | None = None
    """Check this cluster and not this machine: http://HOST:8265, or another value of 'infogan submit --cluster'.
    For a Ray head, also check whether strangers can run code there."""
    json: bool = False
    """Print one JSON object on stdout."""


def doctor(arguments: list[str]) -> int:
    given = parse(
        Doctor,
        "doctor",
        arguments,
        "Check this machine or a cluster.",
        [
            "doctor",
            "doctor --cluster http://127.0.0.1:8265",
        ],
    )
    if given.cluster:
        backend = backend_of(given.cluster)
        findings = backend(given.cluster, backend.FLAGS(), warn).examine()
    else:
        from infogan_ray.distributed.cluster.doctor import examine

        findings = examine()
    if given.json:
        print_json({"findings": [dataclasses.asdict(found) for found in findings]})
    else:
        display.table(
            "doctor", ["", "what", "finding"], [[found.mark, found.what, found.finding] for found in findings]
        )
    return FAILED if any(found.mark == "bad" for found in findings) else DONE
