"""A pair as a spec of plain values, and the pair rebuilt from it.

A spec names classes and their arguments in jsonargparse's form, `class_path` and `init_args`, so the same text serves
`load`, a `--config` file and a reader. No code from outside the package is imported unless the caller allows it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pyro_vae.component import Component
from pyro_vae.data.opening import path_said
from pyro_vae.errors import InputError, first_sentence
from pyro_vae.guides import Guide
from pyro_vae.likelihoods import Likelihood
from pyro_vae.models.base import ComposedPair
from pyro_vae.networks import Network, Wrapped
from pyro_vae.objectives.base import Objective
from pyro_vae.priors import Prior

# Stands for an argument that can't be written down, such as a module made of layers by hand.
GIVEN = "given in Python"
# What others are made of: no use by itself.
_BASES = (ComposedPair, Component, Guide, Likelihood, Network, Objective, Prior)
# Where the classes lie that a config may name.
_ROOMS = ("distributions", "guides", "likelihoods", "models", "networks", "objectives", "priors")


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
        InputError: if a class lies outside the package and `allow`, does not exist, takes other arguments, or can't be
            made with these.
    """
    if isinstance(spec, list):
        return [build(part, allow=allow, given=given, name=name) for part in spec]
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        return spec
    given = given or {}
    arguments = spec.get("init_args") or {}
    if not isinstance(arguments, Mapping) and arguments != GIVEN:
        raise InputError(f"{name}: init_args must hold arguments by name, but is a {type(arguments).__name__}.")
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
    try:
        return cls(**parts)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name}: {cls.__name__} can't be made with these arguments: {first_sentence(error)}."
        ) from error


def named_class(path: Any, allow: Sequence[str], name: str) -> type:
    """The class at a dotted path, from this package or from a module that the caller allows.

    Of this package only pairs, components and objectives can be named, and only their modules are imported.
    """
    module_name, _, class_name = str(path).rpartition(".")
    own = module_name.split(".")[0] == __name__.split(".")[0]
    trusted = any(module_name == allowed or module_name.startswith(f"{allowed}.") for allowed in allow)
    if not own and not trusted:
        raise InputError(
            f"{name}: the config names {path_said(str(path))}, which is outside pyro_vae. If you trust that code, allow its "
            f"module by name: load(path, allow=[{module_name!r}])."
        )
    if own and not (module_name := _own_module(module_name)):
        raise InputError(f"{name}: {path_said(str(path))} is neither a pair, nor a component, nor an objective.")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{name}: the config names {path_said(str(path))}, which can't be imported: {error}."
        ) from error
    known = isinstance(cls, type) and issubclass(cls, (ComposedPair, nn.Module, Objective)) and cls not in _BASES
    if not known or (own and cls.__module__.split(".")[0] != __name__.split(".")[0]):
        raise InputError(f"{name}: {path_said(str(path))} is neither a pair, nor a component, nor an objective.")
    return cls


def _own_module(name: str) -> str:
    """The present name of a module of this package that defines components, pairs or objectives; "" for others."""
    import pyro_vae

    room = name.partition(".")[2]
    room = pyro_vae._FORMER.get(room, room)
    return f"pyro_vae.{room}".rstrip(".") if room in _own_modules() else ""


@functools.cache
def _own_modules() -> frozenset[str]:
    """Those modules, found in their folders without importing them."""
    import pyro_vae

    found = {""}  # the package itself, from which VAE and others can be imported
    for place in pyro_vae.__path__:
        for room in _ROOMS:
            inside = pkgutil.iter_modules([f"{place}/{room}"])
            found |= {room, *(f"{room}.{module.name}" for module in inside)}
    return frozenset(found)


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
