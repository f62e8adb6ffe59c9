"""Runs a program of the zoo under Pyro's SVI and under ours, and compares all that can be seen of the two runs."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch

from pyro_vae.svi import SVI
from tests.engine.zoo.program import STEPS, Entry, Program, set_changes

LOSS_TOLERANCE = 1e-5
VALUE_TOLERANCE = 2e-4


@dataclass
class Observed:
    """What can be seen of one run.

    Attributes:
        losses: of each step, or the exception's type where it raised.
        errors: the messages of the exceptions, by step; not compared.
        params: the param store's unconstrained values, in its order.
        grads: of these; None stands for zeros.
        kept: what the program recorded.
        printed: what it printed.
        logged: what it logged on the logger "zoo".
        warned: its own warnings, those that begin with "zoo".
        random: the random states afterwards.
        told: all other warnings, and those that the engine logged; not compared.
        engine: what the engine logged at level WARNING; not compared.
        how: the SVI's `how`, if it has one; not compared.
    """

    losses: list[Any]
    errors: dict[int, str]
    params: dict[str, torch.Tensor]
    grads: dict[str, torch.Tensor]
    kept: Any
    printed: str
    logged: list[str]
    warned: list[str]
    random: dict[str, Any]
    told: list[str]
    engine: list[str]
    how: str


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def _logged(name: str, level: int) -> Iterator[list[logging.LogRecord]]:
    logger, handler = logging.getLogger(name), _Records()
    before = logger.level, logger.propagate
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def run(entry: Entry, make: Callable[..., Any], *, changing: bool = True, steps: int = STEPS) -> Observed:
    """Runs a fresh program with SVIs that `make` makes of a class transformation and SVI's arguments."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    set_changes(changing)
    text = io.StringIO()
    with (
        _logged("pyro_vae", logging.WARNING) as engine,
        _logged("zoo", logging.DEBUG) as logged,
        warnings.catch_warnings(record=True) as raised,
        contextlib.redirect_stdout(text),
    ):
        warnings.simplefilter("always")
        program = entry.factory()
        try:
            program.make = lambda *args, **kwargs: make(program.subclass, *args, **kwargs)
            pyro.set_rng_seed(2)
            program.svi = program.make(program.model, program.guide, program.optim, program.loss)
            program.start()
            losses, errors = [], {}
            for step in range(steps):
                try:
                    if changing:
                        program.between(step)
                    losses.append(plain(program.step(step)))
                except Exception as error:
                    losses.append(type(error).__name__)
                    errors[step] = str(error)
            kept = _kept(program)
            states = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": _numpy_state()}
        finally:
            program.close()
            set_changes(True)
    params = dict(pyro.get_param_store().named_parameters())
    own = [str(one.message) for one in raised if str(one.message).startswith("zoo")]
    others = [str(one.message) for one in raised if not str(one.message).startswith("zoo")]
    messages = [record.getMessage() for record in engine if record.levelno >= logging.WARNING]
    return Observed(
        losses=losses,
        errors=errors,
        params=plain(params),
        grads={n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in params.items()},
        kept=kept,
        printed=text.getvalue(),
        logged=[record.getMessage() for record in logged],
        warned=own,
        random=states,
        told=others + messages,
        engine=messages,
        how=str(getattr(program.svi, "how", "")),
    )


def _kept(program: Program) -> Any:
    try:
        return plain(program.kept())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _numpy_state() -> tuple[Any, ...]:
    return tuple(part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state())


def pyro_maker(subclass: Callable[[type], type], *args: Any, **kwargs: Any) -> Any:
    """Pyro's SVI."""
    return subclass(pyro.infer.SVI)(*args, **kwargs)


def our_maker(mode: str) -> Callable[..., Any]:
    """Ours, in a mode."""
    return lambda subclass, *args, **kwargs: subclass(SVI)(*args, compile=mode, **kwargs)


def plain(value: Any) -> Any:
    """A copy that later steps can't change."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, Set):
        return sorted(map(repr, value))
    if (isinstance(value, Sequence) and not isinstance(value, (str, bytes))) or type(value).__name__ == "deque":
        return [plain(one) for one in value]
    if isinstance(value, (int, str, bytes, type(None), complex)):
        return value
    return float(value)


def agree(mine: Any, theirs: Any, tolerance: float) -> bool:
    """Whether two nested values are equal up to rounding."""
    if isinstance(theirs, (torch.Tensor, np.ndarray)):
        if type(mine) is not type(theirs) or mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return False
        mine, theirs = torch.as_tensor(mine), torch.as_tensor(theirs)
        if not theirs.is_floating_point():
            return torch.equal(mine, theirs)
        return torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(theirs, dict):
        return list(mine) == list(theirs) and all(agree(mine[key], theirs[key], tolerance) for key in theirs)
    if isinstance(theirs, (list, tuple)):
        return len(mine) == len(theirs) and all(agree(a, b, tolerance) for a, b in zip(mine, theirs, strict=True))
    if isinstance(theirs, float) and isinstance(mine, (float, int)):
        if math.isnan(theirs) or math.isinf(theirs):
            return str(float(mine)) == str(theirs)
        return abs(mine - theirs) <= tolerance * max(1.0, abs(theirs))
    return bool(mine == theirs)


def differences(entry: Entry, ours: Observed, pyros: Observed) -> list[str]:
    """What differs between two runs, in words; the first of them is the most telling."""
    found = []
    for step, (mine, theirs) in enumerate(zip(ours.losses, pyros.losses, strict=True)):
        if isinstance(mine, str) and mine != theirs:
            found.append(f"raises {mine} at step {step} ({ours.errors[step][:200]!r}); Pyro gives {theirs!r}")
            break
        if not agree(mine, theirs, LOSS_TOLERANCE):
            found.append(f"loss at step {step} is {mine!r}; Pyro's is {theirs!r}")
            break
    if entry.exact and not agree(ours.params, pyros.params, VALUE_TOLERANCE):
        keys = list(ours.params), list(pyros.params)
        found.append(f"parameters differ, in names or order: {keys}" if keys[0] != keys[1] else "parameters differ")
    if entry.exact and not agree(ours.grads, pyros.grads, VALUE_TOLERANCE):
        found.append("gradients left on parameters differ")
    for name in ("kept", "printed", "logged", "warned", "random"):
        mine, theirs = getattr(ours, name), getattr(pyros, name)
        if not agree(mine, theirs, VALUE_TOLERANCE):
            found.append(f"{name}: {str(mine)[:160]} instead of {str(theirs)[:160]}" if name != "random" else name)
    if any("NaN" in one for one in pyros.told) and not any("nan" in one.lower() for one in ours.told):
        found.append("a NaN loss is not told")
    return found


def only_here(ours: Observed, pyros: Observed) -> bool:
    """Whether ours raises at a step at which Pyro does not."""
    return any(isinstance(a, str) and not isinstance(b, str) for a, b in zip(ours.losses, pyros.losses, strict=True))
