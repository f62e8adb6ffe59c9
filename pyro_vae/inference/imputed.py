"""A table with its missing cells filled: a DataFrame that knows how sure it is."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from pyro_vae.data.tables import Table, filled_frame, frame_of_cells
from pyro_vae.inference.imputation import Imputation


class Imputed(pd.DataFrame):
    """The rows that were given, with index, names, order and dtypes, and all missing cells of modelled columns filled.

    What is made from it, such as a selection of rows, is a plain DataFrame.

    Attributes:
        imputation: the figures behind it, as tensors.
        table: the rows as they were.
    """

    _metadata = ["imputation", "table"]  # noqa: RUF012 - pandas' own name for attributes that are no columns

    imputation: Imputation
    table: Table

    @classmethod
    def of(cls, table: Table, imputation: Imputation) -> Imputed:
        """The frame of a table and its imputation."""
        frame = cls(filled_frame(table.frame, imputation.values, imputation.missing, table.columns))
        frame.imputation, frame.table = imputation, table
        return frame

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame

    def draws(self, num_draws: int, seed: int = 0) -> list[Any]:
        """Completed tables for multiple imputation, each drawn from p(missing | observed).

        Args:
            num_draws: M.
            seed: of the draws.
        """
        drawn = self.imputation.draws(num_draws, seed)
        missing, columns = self.imputation.missing, self.table.columns
        return [filled_frame(self.table.frame, x, missing, columns) for x in drawn]

    def interval(self, level: float = 0.9) -> tuple[Any, Any]:
        """Lower and upper ends of the central interval of each cell of the modelled columns, as two DataFrames.

        Args:
            level: 0.5 or 0.9. An observed cell is both its ends.
        """
        low, high = (frame_of_cells(end, self.table.columns, self.index) for end in self.imputation.interval(level))
        return low, high

    @property
    def khat(self) -> Any:
        """Pareto k-hat of each row, a Series; above 0.7 its figures are not to be trusted."""
        return self._series(self.imputation.khat, "khat")

    @property
    def ess(self) -> Any:
        """Effective sample size of each row, a Series."""
        return self._series(self.imputation.ess, "ess")

    def _series(self, values: torch.Tensor, name: str) -> Any:
        return pd.Series(values.cpu().numpy(), index=self.index, name=name)
