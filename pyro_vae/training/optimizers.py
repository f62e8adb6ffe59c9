"""An optimizer's state in a checkpoint: as plain values and tensors, and checked before it is put back."""

from __future__ import annotations

import math
from typing import Any

import torch

from pyro_vae.errors import InputError

#: Of torch's optimizers: entries of the state that are as large as the parameter.
_SHAPED = frozenset(
    (
        "exp_avg",
        "exp_avg_sq",
        "max_exp_avg_sq",
        "exp_inf",
        "momentum_buffer",
        "square_avg",
        "grad_avg",
        "acc_delta",
        "sum",
    )
)
#: Entries of a group that a run does not change; of others only the kind must be the same.
_FIXED = frozenset(
    ("alpha", "amsgrad", "betas", "centered", "dampening", "decoupled_weight_decay", "eps", "etas", "lambd")
).union(("maximize", "momentum", "momentum_decay", "nesterov", "rho", "t0", "weight_decay"))


def plain_rates(state: dict[str, Any]) -> dict[str, Any]:
    """Learning rates as numbers, for the checkpoint.

    Args:
        state: what `Optimizer.state_dict` returned.
    """
    return {**state, "param_groups": [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]}


def full_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Undoes what a file with string keys does to torch's integer keys and tuples; adds what later releases of torch keep.

    Args:
        optimizer: of this run.
        saved: its state in the checkpoint.
    """
    groups = [
        {**mine, **{k: tuple(v) if k == "betas" else v for k, v in its.items()}}
        for mine, its in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    ]
    return {"state": {int(k): v for k, v in saved["state"].items()}, "param_groups": groups}


def check_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Refuses a saved state that the optimizer could not go on from.

    Args:
        optimizer: of this run.
        saved: its state in the checkpoint.

    Raises:
        InputError: naming what differs.
    """
    groups = optimizer.state_dict()["param_groups"]
    if len(groups) != len(saved["param_groups"]):
        raise InputError(_differs("number of groups of parameters"))
    for mine, its in zip(groups, saved["param_groups"], strict=True):
        if not all(isinstance(place, int) for place in its["params"]) or mine["params"] != its["params"]:
            raise InputError(_differs("list of parameters"))
        for name in (mine.keys() & its.keys()) - {"lr", "params"}:
            if not _alike(mine[name], its[name], name in _FIXED):
                raise InputError(_differs(name))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    needed = _needed(optimizer, saved["state"])
    for place, entries in saved["state"].items():
        if int(place) >= len(parameters):
            raise InputError(_differs(f"number of parameters: {place} of {len(parameters)}"))
        if entries.keys() != needed and not (isinstance(optimizer, torch.optim.Adam) and needed <= entries.keys()):
            raise InputError(_differs(f"set of entries for parameter {place}"))
        for name, value in entries.items():
            _check_entry(name, value, parameters[int(place)], place)


def _needed(optimizer: torch.optim.Optimizer, states: dict[str, Any]) -> set[str]:
    """The entries that each parameter's state has."""
    if isinstance(optimizer, torch.optim.Adam):
        amsgrad = any(group["amsgrad"] for group in optimizer.param_groups)
        return {"step", "exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if amsgrad else set())
    return set(next(iter(states.values()), {}))


def _check_entry(name: str, value: Any, parameter: torch.Tensor, place: str) -> None:
    if name in _SHAPED and not (value is None and name == "momentum_buffer"):
        alike = isinstance(value, torch.Tensor) and value.shape == parameter.shape
        if not alike or value.is_floating_point() != parameter.is_floating_point():
            raise InputError(_differs(f"{name} for parameter {place}"))
    if name == "step":
        number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < math.inf:
            raise InputError(_differs(f"step for parameter {place}: wanted is a number of at least 0"))


def _alike(mine: Any, its: Any, equal: bool) -> bool:
    """Whether a value of the checkpoint may stand for one of this optimizer."""
    if isinstance(mine, (list, tuple)):
        same = isinstance(its, (list, tuple)) and len(mine) == len(its)
        return same and all(_alike(a, b, equal) for a, b in zip(mine, its, strict=True))
    if isinstance(mine, (bool, str)) or mine is None:
        return type(its) is type(mine) and (its == mine or not equal)
    if isinstance(mine, (int, float)):
        number = isinstance(its, (int, float)) and not isinstance(its, bool) and math.isfinite(its)
        return number and (its == mine or not equal)
    return type(its) is type(mine)


def _differs(what: str) -> str:
    return f"resume=True: the checkpoint's optimizer has another {what}; a run goes on with the same optimizer."
