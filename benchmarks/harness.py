"""Interleaved timing, ratios per round, and what a reader must know of the machine and the versions."""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

DISTRIBUTIONS = ("torch", "torchvision", "pyro-ppl", "numpyro", "jax", "jaxlib", "pythae", "pyroved", "pyro_vae")

_STARTED = time.perf_counter()

HANDING = "1.25 MB handed from core to core"

TOLERANCE = 0.02  # relative: how far a contender's loss may be from the reference's before its time is believed


@dataclass
class Options:
    """What the command line said.

    Args:
        quick: few rounds on little data, to see that all works; its figures are noise.
        rounds: how often each contender takes its turn.
        data_root: folder with torchvision's MNIST; None: made-up binary images.
    """

    quick: bool = False
    data_root: Path | None = None
    rounds: int = 7


@dataclass
class Row:
    """One contender in one case.

    Attributes:
        unit: of `times`: seconds or bytes per what; smaller is better.
        times: one value per round.
        ratios: the reference's value over this one's in the same round: how many times better this one is.
        check: what must agree with the reference's (a loss, an estimate), and that it does, in words.
        agrees: whether it does; a ratio is shown only then.
        note: what else the reader must know, such as "not installed".
        details: further figures, for the JSON.
    """

    part: str
    case: str
    contender: str
    unit: str = "s"
    times: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    check: str = ""
    agrees: bool = True
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For the JSON: the rounds as they were, and their summaries."""
        return {**vars(self), "time": spread(self.times), "ratio": spread(self.ratios)}


def spread(values: list[float]) -> dict[str, float] | None:
    """Median, least and greatest."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Apart:
    """A contender in a process of its own: no other's threads, compilers and scattered memory are in its way.

    Args:
        make: called in that process with `arguments`; gives the function that calls from here are passed on to. Both it
            and what it takes and gives can be pickled.
    """

    def __init__(self, make: Callable[..., Callable[..., Any]], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments))
        self.process.start()
        theirs.close()

    def __call__(self, *arguments: Any) -> Any:
        """The function's result.

        Raises:
            RuntimeError: if it failed there; with its traceback.
        """
        self.pipe.send(arguments)
        done, result = self.pipe.recv()
        if not done:
            raise RuntimeError(result)
        return result

    def close(self) -> None:
        """Ends the process."""
        self.pipe.close()
        self.process.join()


def _serve(pipe: Any, make: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...]) -> None:
    function = None
    while True:
        try:
            given = pipe.recv()
        except EOFError:  # the other end was closed
            return
        try:
            function = function or make(*arguments)
            gc.collect()
            pipe.send((True, function(*given)))
        except Exception:  # whatever a contender raises belongs to the one who called it
            pipe.send((False, traceback.format_exc()))


def handing_over() -> float:
    """Seconds in which two threads read 1.25 MB of which each half was last written by the other.

    A machine that places its two cores now on one chip and now on two takes ten times as long for it on two, and small
    training steps half as long again.
    """
    x, best = torch.zeros(400, 784), float("inf")
    for _ in range(30):
        start = time.perf_counter()
        x = x.flip(0)
        best = min(best, time.perf_counter() - start)
    return best


def interleave(turns: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """A B C A B C ...: each turn measures itself and returns its figure; drifts of the machine meet all alike."""
    figures: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            gc.collect()
            figures[name].append(turn())
        say(f"  round {number + 1}/{rounds}")
    return figures


def rows(part: str, case: str, figures: Mapping[str, list[float]], reference: str, unit: str = "s") -> list[Row]:
    """Figures as rows, each round's ratio taken to the reference's figure in that same round."""
    return [
        Row(part, case, name, unit, times, [r / t for r, t in zip(figures[reference], times, strict=True)])
        for name, times in figures.items()
    ]


def compare(row: Row, value: float, wanted: float, what: str = "loss", allowed: float | None = None) -> None:
    """Notes on the row whether `value` agrees with the reference's."""
    allowed = TOLERANCE * abs(wanted) if allowed is None else allowed
    row.agrees = abs(value - wanted) <= allowed
    row.check = f"{what} {value:.3f}" if row.agrees else f"{what} differs: {value:.3f}, wanted {wanted:.3f}"
    row.details |= {what: value, f"reference {what}": wanted, "allowed": allowed}


def missing(part: str, case: str, *packages: str) -> Row | None:
    """A row that says which peer is not installed; None if all are."""
    lacking = [name for name in packages if importlib.util.find_spec(name) is None]
    return Row(part, case, lacking[0], note="not installed") if lacking else None


def say(line: str) -> None:
    """Progress, kept out of the table."""
    print(f"{time.perf_counter() - _STARTED:7.1f} s  {line}", file=sys.stderr, flush=True)


def environment() -> dict[str, Any]:
    """Versions, machine, load and date; no host name."""
    versions = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    machine = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "load_before": os.getloadavg()[0],
    }
    return {"date": datetime.date.today().isoformat(), "versions": versions, "machine": machine}


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
