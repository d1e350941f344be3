"""Checks of the addresses of MLflow and Weights & Biases, before a run starts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from infogan_ray import UserError

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}
SCHEMES = ("http", "https", "sqlite", "databricks")


def check_addresses(mlflow: str | None, wandb: str | None) -> None:
    """Raises UserError for what can be no tracker's address, and for one with credentials in it."""
    if mlflow is not None:
        scheme, divider, rest = mlflow.partition("://")
        if mlflow != "databricks" and (not divider or scheme not in SCHEMES or not rest.strip("/")):
            said = mlflow if "@" not in mlflow else f"{scheme}://…"
            raise UserError(f"mlflow is '{said}'; write http://HOST:5000, sqlite:///FILE.db or databricks")
        if "@" in rest.split("/")[0] or "?" in rest:
            raise UserError(
                "mlflow has credentials or settings in its URI; they belong into the environment "
                "(MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN)"
            )
    if wandb is not None and (not wandb or set(wandb) & set("/\\#?%:") or len(wandb) > 128):
        raise UserError(
            f"wandb is '{wandb}'; write a project's name, without / \\ # ? % : (its owner is $WANDB_ENTITY)"
        )


def check_packages(mlflow: str | None, wandb: str | None) -> None:
    """Raises UserError, with the command that installs it, where a tracker's package is missing."""
    for name, value in (("mlflow", mlflow), ("wandb", wandb)):
        if value is not None and importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"{name} is '{value}', and its package is not installed; pip install 'infogan-ray[{name}]'")


def with_absolute_path(mlflow: str | None) -> str | None:
    """Workers run in another folder, where the path of a database file means something else."""
    if mlflow is None or not mlflow.startswith("sqlite:///") or mlflow.startswith("sqlite:////"):
        return mlflow
    return f"sqlite:///{Path(mlflow.removeprefix('sqlite:///')).expanduser().absolute()}"
