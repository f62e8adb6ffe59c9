"""What all results share: a short table in print and in notebooks, and JSON on disk."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data.files import write_text


class Result:
    """A dataclass of tensors and numbers that prints as `rows` says, shows as HTML, and saves as JSON."""

    def rows(self) -> list[tuple[str, str]]:
        """(what, its value in words), the table's lines."""
        raise NotImplementedError(f"{type(self).__name__} must define rows().")

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(what) for what, _ in rows)
        lines = [f"{what:<{width}}  {value}" for what, value in rows]
        return "\n".join([*lines, *(f"note: {note}" for note in getattr(self, "notes", ()))])

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in self.rows())
        notes = "".join(f"<p>note: {html.escape(note)}</p>" for note in getattr(self, "notes", ()))
        return f"<table>{cells}</table>{notes}"

    def as_dict(self) -> dict[str, Any]:
        """The fields as numbers, strings and nested lists; what is not finite becomes None."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {field.name: plain(getattr(self, field.name)) for field in fields}

    def save(self, path: str | Path) -> None:
        """Writes `as_dict()` as JSON, whole or not at all."""
        write_text(path, json.dumps(self.as_dict(), allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """The mean of (N,) numbers and its standard error over them, NaN for one."""
    values = values.double()
    error = (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan
    return values.mean().item(), error


def in_words(mean: float, error: float) -> str:
    """A number with its error, in nats."""
    return f"{mean:.3f}" if math.isnan(error) else f"{mean:.3f} ± {error:.3f}"
