"""config.yaml and model.safetensors: a pair's spec and weights, and the pair rebuilt from them.

Nothing is pickled. A spec names classes and their arguments in jsonargparse's form, `class_path` and `init_args`,
so the same text serves `load`, a `--config` file and a reader.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import nn

from pyro_vae.checks import InputError
from pyro_vae.component import Component
from pyro_vae.files import replacing, write_text
from pyro_vae.models.base import ComposedPair
from pyro_vae.networks import Wrapped
from pyro_vae.objectives.base import Objective
from pyro_vae.pair import as_pair, modules, registered

CONFIG, WEIGHTS = "config.yaml", "model.safetensors"
# Stands for an argument that can't be written down, such as a module made of layers by hand.
GIVEN = "given in Python"


# --- specs ------------------------------------------------------------------------------------------------------------


def spec(thing: Any) -> Any:
    """What rebuilds `thing`: plain values as they are, objects as {"class_path": ..., "init_args": ...}."""
    if isinstance(thing, Wrapped):
        return spec(thing.module)
    if isinstance(thing, (Component, ComposedPair)):
        return _object_spec(thing, {name: spec(value) for name, value in thing.arguments().items()})
    if isinstance(thing, nn.Module):
        return _object_spec(thing, _stored_arguments(thing))
    if isinstance(thing, (list, tuple)):
        return [spec(value) for value in thing]
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if inspect.isfunction(thing):
        return {"class_path": f"{thing.__module__}.{thing.__qualname__}", "init_args": GIVEN}
    if isinstance(thing, Mapping):
        return {str(key): spec(value) for key, value in thing.items()}
    raise InputError(f"{thing!r} can't be written into a config; components take numbers, words, lists and components.")


def _object_spec(thing: Any, arguments: dict[str, Any] | str) -> dict[str, Any]:
    cls = type(thing)
    home = cls.__module__
    room = ".".join(home.split(".")[:2])  # where users find it, such as pyro_vae.likelihoods
    if isinstance(thing, Component) and getattr(sys.modules.get(room), cls.__qualname__, None) is cls:
        home = room
    return {"class_path": f"{home}.{cls.__qualname__}", "init_args": arguments}


def _stored_arguments(module: nn.Module) -> dict[str, Any] | str:
    """The arguments of a module of the user's, if it keeps each under its own name as a plain value."""
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not hasattr(module, name):
            return GIVEN
        value = getattr(module, name)
        if not (value is None or isinstance(value, (bool, int, float, str, list, tuple))):
            return GIVEN
        arguments[name] = spec(value)
    return arguments


def build(spec: Any, *, allow: Sequence[str] = (), given: Mapping[str, Any] | None = None, name: str = "model") -> Any:
    """The object that a spec describes.

    Args:
        spec: what `spec` returned, or a part of a config file.
        allow: names of modules outside this package whose classes may be imported.
        given: objects to use for arguments by name, in place of what the spec says.
        name: the argument that is being built, for messages.

    Raises:
        InputError: if a class lies outside the package and `allow`, does not exist, or takes other arguments.
    """
    if isinstance(spec, list):
        return [build(part, allow=allow, given=given, name=name) for part in spec]
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        return spec
    given = given or {}
    arguments = spec.get("init_args") or {}
    if arguments == GIVEN:
        raise InputError(
            f"{name} is a {spec['class_path']} that was {GIVEN}; make it again and pass it: load(path, {name}=...)."
        )
    cls = named_class(spec["class_path"], allow, name)
    known = inspect.signature(cls).parameters
    for argument in arguments:
        if argument not in known:
            raise InputError(f"{name}: {cls.__name__} takes no argument {argument!r}; it takes {', '.join(known)}.")
    parts = {
        key: given[key] if key in given else build(value, allow=allow, given=given, name=key)
        for key, value in arguments.items()
    }
    return cls(**parts)


def named_class(path: Any, allow: Sequence[str], name: str) -> type:
    """The class at a dotted path, from this package or from a module that the caller allows."""
    module_name, _, class_name = str(path).rpartition(".")
    own = module_name.split(".")[0] == __name__.split(".")[0]
    trusted = any(module_name == allowed or module_name.startswith(f"{allowed}.") for allowed in allow)
    if not own and not trusted:
        raise InputError(
            f"{name}: the config names {path}, which is outside pyro_vae. If you trust that code, allow its module by "
            f"name: load(path, allow=[{module_name!r}])."
        )
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{name}: the config names {path}, which can't be imported: {error}.") from error
    if not isinstance(cls, type) or not issubclass(cls, (ComposedPair, nn.Module, Objective)):
        raise InputError(f"{name}: {path} is neither a pair, nor a component, nor an objective.")
    return cls


# --- weights ----------------------------------------------------------------------------------------------------------


def state(pair: Any) -> dict[str, torch.Tensor]:
    """All of a pair's parameters and buffers by name: its modules' states, and Pyro's other parameters unconstrained."""
    tensors: dict[str, torch.Tensor] = {}
    own: set[int] = set()
    for prefix, module in _named_modules(pair):
        own |= {id(parameter) for parameter in module.parameters()}
        tensors |= {prefix + name: tensor for name, tensor in module.state_dict().items()}
    store = pyro.get_param_store()
    for name in registered(pair):
        if name in store and id(unconstrained := store[name].unconstrained()) not in own:
            tensors[f"pyro.param.{name}"] = unconstrained
    return tensors


def load_state(pair: Any, tensors: Mapping[str, torch.Tensor]) -> None:
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
        raise InputError(f"The weights do not fit the model: {error}") from error
    store = pyro.get_param_store()
    for name, tensor in rest.items():
        short = name.removeprefix("pyro.param.")
        if short not in store:
            raise InputError(
                f"The weights hold {short!r}, which this pair has not made yet; run pair.guide(x) and pair.model(x) once."
            )
        with torch.no_grad():
            store[short].unconstrained().copy_(tensor)


def _named_modules(pair: Any) -> list[tuple[str, nn.Module]]:
    found = modules(pair)
    if found == [pair]:
        return [("", pair)]
    return [(f"module.{i}.", module) for i, module in enumerate(found)]


def write_weights(pair: Any, path: Path) -> None:
    """Writes `state(pair)` as a safetensors file, replacing what was there in one step."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({n: t.detach().to("cpu", copy=True).contiguous() for n, t in state(pair).items()}, temporary)


# --- the folder -------------------------------------------------------------------------------------------------------


def save(pair: Any, folder: str | Path, *, config: Mapping[str, Any] | None = None) -> Path:
    """Writes `folder`/config.yaml and `folder`/model.safetensors, each replaced in one step.

    Args:
        pair: a VAE, or any pair; a hand-written one is saved with its weights, and `load` must be handed its code.
        folder: made if it is not there.
        config: further entries for config.yaml, beside the model's spec.
    """
    pair = as_pair(pair)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder={str(folder)!r} is a file; name a folder.")
    text = _config_text(pair, config)
    write_weights(pair, folder / WEIGHTS)
    write_text(folder / CONFIG, text)
    return folder


def _config_text(pair: Any, config: Mapping[str, Any] | None) -> str:
    """The YAML of a pair's spec, after the entries of `config`."""
    import yaml

    content = {"pyro_vae": package_version(), **(config or {}), "model": pair_spec(pair)}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def pair_spec(pair: Any) -> Any:
    """The spec of a pair made of components; of others only what they are called."""
    if isinstance(pair, ComposedPair):
        return spec(pair)
    program = getattr(pair.model, "__func__", pair.model)
    cls = type(pair)
    path = (
        f"{cls.__module__}.{cls.__qualname__}" if cls.__name__ != "Pair" else getattr(program, "__qualname__", "model")
    )
    return {"class_path": path, "init_args": GIVEN}


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.yaml of a run folder.

    Raises:
        InputError: if there is none, or it can't be read.
    """
    import yaml

    path = Path(folder) / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{folder} is no run folder: {path.name} can't be read ({error.strerror}).") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(config, dict) or "model" not in config:
        raise InputError(f"{path} has no entry 'model'; was it written by save() or pyro-vae train?")
    return config


def load(folder: str | Path, *, pair: Any = None, allow: Sequence[str] = (), **given: Any) -> Any:
    """The pair that `save` wrote, rebuilt from its config and given its weights, on the CPU. Nothing is unpickled.

    Args:
        folder: a run folder.
        pair: a hand-written pair to put the weights into; it can't be rebuilt from a config.
        allow: modules outside pyro_vae whose classes the config may name.
        **given: arguments that the config can't hold, such as encoder=MyEncoder().

    Raises:
        InputError: if a file is missing or does not fit, or the config names code that is not allowed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(folder)
    if pair is None and given.get("model") is None and config["model"].get("init_args") == GIVEN:
        raise InputError(
            f"{folder} holds the weights of a hand-written pair; pass it: load(path, pair=Pair(model, guide))."
        )
    with torch.random.fork_rng(devices=[]):  # the weights drawn by building are overwritten
        pair = build(config["model"], allow=allow, given=given) if pair is None else as_pair(pair)
    path = Path(folder) / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} can't be read: {error}.") from error
    load_state(pair, tensors)
    return pair


def package_version() -> str:
    """The installed version of this package."""
    try:
        return version("pyro_vae")
    except PackageNotFoundError:
        return "unknown"
