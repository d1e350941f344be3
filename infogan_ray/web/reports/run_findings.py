"""The data of a run, which its report reads once from storage. Missing or broken data leaves a gap and a note."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infogan_ray import UserError
from infogan_ray.models.code_names import read_names
from infogan_ray.models.latents import LatentSpec
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.learned_prior import with_measured_prior
from infogan_ray.training.publish import METRICS
from infogan_ray.web.reports.markup import is_number


@dataclass(frozen=True)
class RunFindings:
    """The data of a run."""

    run: RunDirectory
    status: Mapping[str, Any]
    saved: Mapping[str, Any]
    config: RunConfig | None
    """None if config.json is missing or cannot be read."""
    rows: list[dict[str, Any]]
    """The rows of metrics.jsonl, in order of steps."""
    final: Mapping[str, Any]
    """The metrics of the model folder. Empty until the folder exists."""
    notes: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """Names that users gave to codes, by code."""

    @property
    def latents(self) -> LatentSpec | None:
        """The run's codes. Learned priors have the values of the latest evaluation."""
        return with_measured_prior(self.config.latents, self.latest) if self.config else None

    @property
    def ceilings(self) -> dict[str, float]:
        """The largest possible bound of each code, in nats. Empty if the configuration cannot be read."""
        return self.latents.ceilings if self.latents is not None else {}

    @property
    def latest(self) -> dict[str, Any]:
        """The metrics of the model folder, or of the last evaluation during training."""
        measured = [row for row in self.rows if is_number(row.get("mi_bound"))]
        return dict(self.final or (measured[-1] if measured else {}))

    def curve(self, name: str) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in self.rows if is_number(row.get(name))]


def read_run(run: RunDirectory) -> RunFindings:
    if not run.looks_like_run:
        raise UserError(f"{run.folder} is not a run; 'infogan runs {run.folder.parent}' lists those that are")
    notes: list[str] = []
    saved: dict[str, Any] = {}
    config = None
    try:
        saved = run.read_config()
        config = RunConfig.from_dict(saved["run"], f"{run.folder}/{run.CONFIG}")
    except UserError as error:
        notes.append(str(error))
    rows = [row for row in run.read_metrics() if is_number(row.get("step"))]
    final: dict[str, Any] = {}
    try:
        content = json.loads(run.model.read(METRICS))
        final = content if isinstance(content, dict) else {}
    except FileNotFoundError:
        pass
    except ValueError as error:
        notes.append(f"{run.model}/{METRICS} is not JSON: {error}")
    found = RunFindings(run, run.get_status(), saved, config, sorted(rows, key=lambda row: row["step"]), final, notes)
    if found.latents is not None:
        try:
            found.names.update(read_names(run.folder, found.latents.names))
        except UserError as error:
            notes.append(str(error))
    return found
