"""Signals that end a run: noted as they come, obeyed between two steps, when a checkpoint can be written."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from pyro_vae.training.faults import Terminated


class Stopped(BaseException):
    """A signal came and the run is to be saved as it stands; caught inside the package."""


class Signals:
    """What came since the run started.

    Attributes:
        wanted: the signal that asks for an end; 0 if none came.
        at_once: whether a signal raises `Stopped` where it comes, as it may where no step is being taken.
    """

    def __init__(self) -> None:
        self.wanted = 0
        self.at_once = False

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Notes a signal; a second Ctrl-C interrupts at once."""
        again, self.wanted = self.wanted == number == signal.SIGINT, number
        if again:
            raise KeyboardInterrupt
        if self.at_once:
            self.at_once = False
            raise Stopped
        if number == signal.SIGINT:
            os.write(2, b"\nInterrupted: stopping after this step; press Ctrl-C again to stop at once.\n")

    def check(self) -> None:
        """Raises `Stopped` if a signal came."""
        if self.wanted:
            raise Stopped

    @contextlib.contextmanager
    def between_steps(self) -> Iterator[None]:
        """Within, a signal raises `Stopped` where it comes."""
        self.at_once = True
        try:
            self.check()
            yield
        finally:
            self.at_once = False

    def obey(self, saved: str) -> None:
        """Ends the run as the signal would have.

        Args:
            saved: where the checkpoint lies, for the message.

        Raises:
            Terminated: after SIGTERM; it ends the process with status 143.
            KeyboardInterrupt: after SIGINT.
        """
        if self.wanted == signal.SIGTERM:
            raise Terminated(f"terminated by SIGTERM; the checkpoint {saved} was written.")
        raise KeyboardInterrupt


@contextlib.contextmanager
def noted_signals(active: bool) -> Iterator[Signals]:
    """SIGINT and SIGTERM noted, where Python's own handlers are in place; those are put back afterwards.

    Args:
        active: whether there is a folder to save to; without one, signals end the run at once. So they do in threads other
            than the main one, where no handler can be set.
    """
    signals, before = Signals(), {}
    try:
        if active and threading.current_thread() is threading.main_thread():
            for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) == usual:
                    before[number] = signal.signal(number, signals.receive)
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
