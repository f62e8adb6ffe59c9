"""Faults from outside the program, each told in a sentence: lack of memory, a data worker that was killed, a signal."""

from __future__ import annotations

import re
import sys

import torch

from pyro_vae.data.opening import size_said
from pyro_vae.errors import first_sentence


class Fault(RuntimeError):
    """Something outside the program went wrong; what was saved can be resumed."""


class OutOfMemory(Fault, torch.OutOfMemoryError):
    """A tensor could not be made; the message says at which batch, and what to lower."""


class WorkerKilled(Fault):
    """A process that reads data was killed."""


class Terminated(SystemExit):
    """SIGTERM came; a checkpoint was written."""

    def __init__(self, message: str):
        super().__init__(143)  # 128 + the signal's number, as shells have it
        self.message = message


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had, on whatever device."""
    said = ("can't allocate memory", "not enough memory", "out of memory", "bad allocation")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )


def explained(error: BaseException, epoch: int, batch: int, batch_size: int, device: torch.device) -> Fault | None:
    """The fault behind an error, in a sentence; None if it is another error.

    Args:
        error: that training met.
        epoch, batch: where it stood, both from 1; batch 0 is before the first.
        batch_size: data in a batch.
        device: it ran on.
    """
    if isinstance(error, Fault):
        return None
    where = f"Epoch {epoch}, batch {batch}" if batch else "Before the first step, on the first batch"
    if is_out_of_memory(error):
        return OutOfMemory(
            f"{where} of {batch_size} data: {device} is out of memory{_wanted(str(error))}. Lower batch_size="
            f"{batch_size}, the widths of the networks or the number of samples of the objective."
        )
    if (isinstance(error, RuntimeError) and "DataLoader worker" in str(error)) or _lost_connection(error):
        return WorkerKilled(
            f"{where}: a process that reads the data was killed ({first_sentence(error)}); often memory is short: use fewer "
            "workers."
        )
    return None


def _lost_connection(error: BaseException) -> bool:
    """Whether a DataLoader met the end of a worker in the middle of a message."""
    trace, inside = error.__traceback__, False
    while trace is not None:
        inside |= trace.tb_frame.f_globals.get("__name__") == "torch.utils.data.dataloader"
        trace = trace.tb_next
    return inside and isinstance(error, (ConnectionError, EOFError, FileNotFoundError))


def _wanted(text: str) -> str:
    """How much was asked for, if the message of torch's allocator says so."""
    if found := re.search(r"tried to allocate (\d+) bytes", text):
        return f", asked for {size_said(int(found[1]))}"
    if found := re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text):
        return f", asked for {found[1]}"
    return ""


def note(text: str) -> None:
    """Writes a line to the terminal at once, as a handler of signals may."""
    print(f"\n{text}", file=sys.stderr, flush=True)
