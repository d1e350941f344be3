"""The result of ``InfoGAN.encode``: arrays by column, which become a pandas DataFrame where pandas is installed."""

from __future__ import annotations

import html
import importlib.util
from typing import TYPE_CHECKING

import numpy as np

from infogan_ray import UserError

if TYPE_CHECKING:
    import pandas as pd


class Codes(dict[str, np.ndarray]):
    """The predicted codes of N images: arrays (N,) or (N, K) by column name (``Prior.columns``)."""

    def to_pandas(self) -> pd.DataFrame:
        """A DataFrame with a row for each image. An array (N, K) becomes K columns: cat0_probabilities_0 and so on.

        Raises UserError if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UserError("pandas is not installed; pip install pandas") from None
        columns: dict[str, np.ndarray] = {}
        for name, values in self.items():
            parts = {name: values} if values.ndim == 1 else {f"{name}_{k}": v for k, v in enumerate(values.T)}
            columns |= parts
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        count = len(next(iter(self.values()), ()))
        return f"Codes({count:,} images: {', '.join(self)})"

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        if importlib.util.find_spec("pandas") is None:
            return html.escape(repr(self))
        return self.to_pandas().to_html(max_rows=10, max_cols=12)
