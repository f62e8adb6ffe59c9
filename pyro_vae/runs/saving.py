"""`save` and `load`: config.yaml and model.safetensors. Nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data.files import write_text
from pyro_vae.errors import InputError
from pyro_vae.pair import ModelAndGuide, PairLike, as_pair
from pyro_vae.runs.specs import GIVEN, build, pair_spec
from pyro_vae.runs.weights import load_state, write_weights

CONFIG, WEIGHTS = "config.yaml", "model.safetensors"


def save(pair: PairLike, folder: str | Path, *, config: Mapping[str, Any] | None = None) -> Path:
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


def _config_text(pair: ModelAndGuide, config: Mapping[str, Any] | None) -> str:
    """The YAML of a pair's spec, after the entries of `config`."""
    import yaml

    content = {"pyro_vae": package_version(), **(config or {}), "model": pair_spec(pair)}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


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


def load(folder: str | Path, *, pair: PairLike | None = None, allow: Sequence[str] = (), **given: Any) -> Any:
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
