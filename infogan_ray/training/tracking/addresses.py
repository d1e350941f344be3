"""Checks the addresses of MLflow and Weights & Biases before a run starts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from infogan_ray import UserError

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}
SCHEMES = ("http", "https", "sqlite", "databricks")


def check_addresses(mlflow: str | None, wandb: str | None) -> None:
    """Raises UserError for an invalid address, and for an address with credentials."""
    if mlflow is not None:
        scheme, divider, rest = mlflow.partition("://")
        if mlflow != "databricks" and (not divider or scheme not in SCHEMES or not rest.strip("/")):
            address = mlflow if "@" not in mlflow else f"{scheme}://…"
            raise UserError(f"mlflow is '{address}'; write http://HOST:5000, sqlite:///FILE.db or databricks")
        if "@" in rest.split("/")[0] or "?" in rest:
            raise UserError(
                "mlflow has credentials or settings in its URI; put them into the environment "
                "(MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN)"
            )
    if wandb is not None and (not wandb or set(wandb) & set("/\\#?%:") or len(wandb) > 128):
        raise UserError(
            f"wandb is '{wandb}'; write a project's name, without / \\ # ? % : (its owner is $WANDB_ENTITY)"
        )


def check_packages(mlflow: str | None, wandb: str | None) -> None:
    """Raises UserError, with the install command, if a tracker's package is missing."""
    for name, value in (("mlflow", mlflow), ("wandb", wandb)):
        if value is not None and importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"{name} is '{value}', and its package is not installed; pip install 'infogan-ray[{name}]'")


def with_absolute_path(mlflow: str | None) -> str | None:
    """The address with the absolute path of a database file, since workers run in another folder."""
    if mlflow is None or not mlflow.startswith("sqlite:///") or mlflow.startswith("sqlite:////"):
        return mlflow
    return f"sqlite:///{Path(mlflow.removeprefix('sqlite:///')).expanduser().absolute()}"
