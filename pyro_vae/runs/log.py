"""The run folder: config.yaml, metrics.csv, the checkpoint, the final weights, figures, TensorBoard events."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vae.data.files import sweep, write_tensors, write_text
from pyro_vae.data.opening import given_path, path_said
from pyro_vae.errors import InputError
from pyro_vae.pair import ModelAndGuide
from pyro_vae.runs.saving import CONFIG, WEIGHTS, save
from pyro_vae.runs.weights import write_weights

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.csv"
logger = logging.getLogger("pyro_vae")


def claim(out: str | Path | None, resume: bool) -> Path | None:
    """The run folder as a path, after a look that it does not hold another run already."""
    if out is None:
        return None
    folder = given_path("out", out)
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"out={path_said(folder)!r} is a file; name a folder.")
        held = any((folder / name).exists() for name in (METRICS, WEIGHTS, CHECKPOINT))
    except OSError as error:
        raise InputError(f"out={path_said(folder)!r} can't be used: {error.strerror}.") from error
    if held and not resume:
        raise InputError(
            f"out={path_said(folder)!r} holds a run already; pass resume=True to go on with it, or another folder."
        )
    return folder


class RunLog:
    """Writes the run folder; does nothing without one.

    Args:
        folder: to write, or None.
        pair: whose weights are written.
        keep: how many checkpoints stay; beyond one, each stays under a name with its epoch and step.
        config: further entries for config.yaml.
    """

    def __init__(
        self, folder: Path | None, pair: ModelAndGuide, keep: int = 1, config: Mapping[str, Any] | None = None
    ):
        self.folder, self.pair, self.keep, self.config = folder, pair, keep, config
        self._writer: Any = None
        if folder is not None:
            sweep(folder, owned=(CONFIG, WEIGHTS, CHECKPOINT, METRICS))
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(folder / "tensorboard"))

    def start(self) -> None:
        """The spec and the weights at the start."""
        if self.folder is not None:
            save(self.pair, self.folder, config=self.config)

    def epoch(self, history: Sequence[dict[str, float]], checkpoint: dict[str, Any]) -> None:
        """The numbers and the state after an epoch."""
        if self.folder is None:
            return
        rows = io.StringIO()
        writer = csv.DictWriter(rows, fieldnames=list(dict.fromkeys(name for row in history for name in row)))
        writer.writeheader()
        writer.writerows(history)
        with _uninterrupted():
            self.checkpoint(checkpoint, len(history), 0)
            write_text(self.folder / METRICS, rows.getvalue())
        if self._writer is not None:
            row = history[-1]
            for name in row.keys() - {"epoch"}:
                self._writer.add_scalar(name, row[name], int(row["epoch"]))

    def checkpoint(self, checkpoint: dict[str, Any], epochs: int, step: int) -> None:
        """The state of a run, after so many epochs and so many steps of the next."""
        if self.folder is None:
            return
        if not (self.folder / CONFIG).exists():
            logger.warning("%s has been removed while the run went on; it is made again.", self.folder)
            self.start()
        write_tensors(self.folder / CHECKPOINT, checkpoint)
        if self.keep > 1:
            self._keep(self.folder, f"checkpoint-{epochs:06d}-{step:09d}.safetensors")

    def _keep(self, folder: Path, name: str) -> None:
        """The checkpoint under a name of its own too, and only the last of these."""
        (folder / name).unlink(missing_ok=True)
        try:
            os.link(folder / CHECKPOINT, folder / name)
        except OSError:  # a file system without links
            shutil.copyfile(folder / CHECKPOINT, folder / name)
        kept = sorted(p for p in folder.iterdir() if re.fullmatch(r"checkpoint-\d{6,}-\d{9,}\.safetensors", p.name))
        for old in kept[: -self.keep]:
            old.unlink(missing_ok=True)

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
