"""A pair's weights: by name, and as a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import nn

from pyro_vae.data.files import replacing
from pyro_vae.errors import InputError
from pyro_vae.pair import ModelAndGuide, modules, registered


def state(pair: ModelAndGuide) -> dict[str, torch.Tensor]:
    """All of a pair's parameters and buffers by name: its modules' states, and Pyro's other parameters unconstrained."""
    tensors: dict[str, torch.Tensor] = {}
    own: set[int] = set()
    for prefix, module in _named_modules(pair):
        own |= {id(parameter) for parameter in module.parameters()}
        tensors |= {prefix + name: tensor for name, tensor in module.state_dict().items()}
    store: Any = pyro.get_param_store()
    for name in registered(pair):
        if name in store and id(unconstrained := store[name].unconstrained()) not in own:
            tensors[f"pyro.param.{name}"] = unconstrained
    return tensors


def load_state(pair: ModelAndGuide, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts what `state` returned into a pair of the same make.

    Raises:
        InputError: if names or shapes do not match.
    """
    rest = dict(tensors)
    try:
        for prefix, module in _named_modules(pair):
            mine = [name for name in rest if name.startswith(prefix) and not name.startswith("pyro.param.")]
            module.load_state_dict({name.removeprefix(prefix): rest.pop(name) for name in mine})
    except RuntimeError as error:
        raise InputError(f"The weights do not fit the model: {' '.join(str(error).split())[:300]}") from error
    store: Any = pyro.get_param_store()
    for name, tensor in rest.items():
        short = name.removeprefix("pyro.param.")
        if short not in store:
            raise InputError(
                f"The weights hold {short!r}, which this pair has not made yet; run pair.guide(x) and pair.model(x) once."
            )
        with torch.no_grad():
            store[short].unconstrained().copy_(tensor)


def _named_modules(pair: ModelAndGuide) -> list[tuple[str, nn.Module]]:
    found = modules(pair)
    if isinstance(pair, nn.Module):
        return [("", pair)]
    return [(f"module.{i}.", module) for i, module in enumerate(found)]


def write_weights(pair: ModelAndGuide, path: Path) -> None:
    """Writes `state(pair)` as a safetensors file, replacing what was there in one step."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({n: t.detach().to("cpu", copy=True).contiguous() for n, t in state(pair).items()}, temporary)
