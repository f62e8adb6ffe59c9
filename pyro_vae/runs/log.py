"""The run folder: config.yaml, metrics.csv, the checkpoint, the final weights, figures, TensorBoard events."""

from __future__ import annotations

import contextlib
import csv
import io
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vae.data.files import write_tensors, write_text
from pyro_vae.errors import InputError
from pyro_vae.pair import ModelAndGuide
from pyro_vae.runs.saving import WEIGHTS, save
from pyro_vae.runs.weights import write_weights

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.csv"


def claim(out: str | Path | None, resume: bool) -> Path | None:
    """The run folder as a path, after a look that it does not hold another run already."""
    if out is None:
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={str(out)!r} is a file; name a folder.")
    if not resume and any((folder / name).exists() for name in (METRICS, WEIGHTS, CHECKPOINT)):
        raise InputError(f"out={str(out)!r} holds a run already; pass resume=True to go on with it, or another folder.")
    return folder


class RunLog:
    """Writes the run folder; does nothing without one."""

    def __init__(self, folder: Path | None, pair: ModelAndGuide):
        self.folder, self.pair = folder, pair
        self._writer: Any = None
        if folder is not None:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(folder / "tensorboard"))

    def start(self, config: Mapping[str, Any] | None) -> None:
        """The spec and the weights at the start, with further entries for config.yaml."""
        if self.folder is not None:
            save(self.pair, self.folder, config=config)

    def epoch(self, history: Sequence[dict[str, float]], checkpoint: dict[str, Any]) -> None:
        """The numbers and the state after an epoch."""
        if self.folder is None:
            return
        rows = io.StringIO()
        writer = csv.DictWriter(rows, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
        with _uninterrupted():
            write_tensors(self.folder / CHECKPOINT, checkpoint)
            write_text(self.folder / METRICS, rows.getvalue())
        if self._writer is not None:
            row = history[-1]
            for name in row.keys() - {"epoch"}:
                self._writer.add_scalar(name, row[name], int(row["epoch"]))

    def keep_good_weights(self) -> None:
        """The weights as they are, for a run that can't go on."""
        if self.folder is not None:
            write_weights(self.pair, self.folder / WEIGHTS)

    def finish(self, history: Sequence[dict[str, float]], shown: Any) -> None:
        """The final weights, and the figures of the data to be shown."""
        if self._writer is not None:
            self._writer.close()
        if self.folder is None:
            return
        write_weights(self.pair, self.folder / WEIGHTS)
        from pyro_vae.report import figures

        figures(self.pair, history, shown, self.folder / "figures")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets an interruption wait until both files of an epoch are there."""
    try:
        before = signal.signal(signal.SIGINT, lambda *_: waiting.append(True))
    except ValueError:  # not in the main thread, where interruptions do not arrive anyway
        yield
        return
    waiting: list[bool] = []
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        raise KeyboardInterrupt
