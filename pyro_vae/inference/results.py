"""What an estimate returns: a dataclass that prints as a short table, shows as HTML in notebooks, and saves as JSON."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from pyro_vae.data.files import write_text

Rows = list[tuple[str, str]]


class Result:
    """Base of what an estimate returns. A subclass is a dataclass that defines `rows()`.

    Attributes:
        title: first line of the table.
        derived: properties that are saved beside the fields.
        notes: what the reader of the numbers must know.
    """

    title: ClassVar[str] = ""
    derived: ClassVar[tuple[str, ...]] = ()
    notes: tuple[str, ...] = ()

    def rows(self) -> Rows:
        """The table's rows, (name, value)."""
        raise NotImplementedError(f"{type(self).__name__} must define rows().")

    def __str__(self) -> str:
        rows = [*self.rows(), *(("note", note) for note in self.notes)]
        width = max((len(name) for name, _ in rows), default=0)
        head = [self.title] if self.title else []
        return "\n".join([*head, *(f"{name:<{width}}  {value}" for name, value in rows)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = "".join(
            f'<tr><th style="text-align:left">{html.escape(name.strip())}</th>'
            f'<td style="text-align:left">{html.escape(value)}</td></tr>'
            for name, value in [*self.rows(), *(("note", note) for note in self.notes)]
        )
        head = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        return f"<table>{head}{body}</table>"

    def as_dict(self, max_values: int | None = None) -> dict[str, Any]:
        """All fields as what JSON can hold; a number that is not finite becomes None.

        Args:
            max_values: tensors with more numbers than this are left out; by default none is.
        """
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        content = {name: getattr(self, name) for name in [*names, *self.derived]}
        return {k: _plain(v, max_values) for k, v in content.items() if not _too_long(v, max_values)}

    def save(self, path: str | Path) -> None:
        """Writes all fields as JSON; the file is written whole or not at all."""
        write_text(path, json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Bounds:
    """A quantity that lies between the expectations of two estimates.

    Attributes:
        lower, upper: the estimates, in nats.
        lower_stderr, upper_stderr: their standard errors.
    """

    lower: float
    upper: float
    lower_stderr: float = math.nan
    upper_stderr: float = math.nan

    def __str__(self) -> str:
        if self.lower == self.upper:
            return f"{nats(self.lower, self.lower_stderr)}"
        return f"{nats(self.lower, self.lower_stderr)} to {nats(self.upper, self.upper_stderr)}"


def nats(value: float, stderr: float = math.nan) -> str:
    """A number with its standard error, if that is known."""
    error = "" if math.isnan(stderr) else f" ± {stderr:.3f}"
    return f"{value:.3f}{error}".replace("-", "−")


def chance(p: float) -> str:
    """A p-value for a reader: three decimals, or that it is smaller."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def few(names: Sequence[str], most: int = 6) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _too_long(value: Any, most: int | None) -> bool:
    return most is not None and isinstance(value, torch.Tensor) and value.numel() > most


def _plain(value: Any, most: int | None) -> Any:
    if isinstance(value, torch.Tensor):
        return _plain(value.detach().cpu().tolist(), most)
    if isinstance(value, Result):
        return value.as_dict(most)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, most)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, most) for k, v in value.items() if not _too_long(v, most)}
    if isinstance(value, (list, tuple)):
        return [_plain(v, most) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (bool, int, str)) or value is None else str(value)


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """The mean of (N,) numbers and its standard error over them, NaN for one."""
    values = values.double()
    error = (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan
    return values.mean().item(), error
