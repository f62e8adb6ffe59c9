"""`save` and `load`: config.yaml and model.safetensors. Nothing is pickled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data.files import write_text
from pyro_vae.data.opening import given_path, path_said
from pyro_vae.errors import InputError
from pyro_vae.pair import ModelAndGuide, PairLike, as_pair
from pyro_vae.runs.budget import bounded
from pyro_vae.runs.reading import read_weights, read_yaml, weights_size
from pyro_vae.runs.schema import CONFIG_ENTRIES, CONFIG_FORMAT, MODEL_ENTRIES, check_format, checked
from pyro_vae.runs.specs import GIVEN, build, pair_spec
from pyro_vae.runs.weights import load_state, state, write_weights

CONFIG, WEIGHTS = "config.yaml", "model.safetensors"


def save(pair: PairLike, folder: str | Path, *, config: Mapping[str, Any] | None = None) -> Path:
    """Writes `folder`/config.yaml and `folder`/model.safetensors, each replaced in one step.

    Args:
        pair: a VAE, or any pair; a hand-written one is saved with its weights, and `load` must be handed its code.
        folder: made if it is not there.
        config: further entries for config.yaml, beside the model's spec.
    """
    pair = as_pair(pair)
    folder = given_path("folder", folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder={str(folder)!r} is a file; name a folder.")
    text = _config_text(pair, config)
    write_weights(pair, folder / WEIGHTS)
    write_text(folder / CONFIG, text)
    return folder


def _config_text(pair: ModelAndGuide, config: Mapping[str, Any] | None) -> str:
    """The YAML of a pair's spec, after the entries of `config`."""
    return _as_yaml(
        {"pyro_vae": package_version(), "format": CONFIG_FORMAT, **(config or {}), "model": pair_spec(pair)}
    )


def check_writable(config: Any) -> None:
    """Refuses further entries for config.yaml that can't be written.

    Raises:
        InputError: naming what YAML has no word for.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"config={config!r} must hold entries by name.")
    _as_yaml(dict(config))


def _as_yaml(content: dict[str, Any]) -> str:
    import yaml

    try:
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())[:100]
        raise InputError(
            f"config can't be written as YAML ({said}); wanted: numbers, words, lists and dicts."
        ) from error


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.yaml of a run folder, whose model is checked; `run_entries` checks the rest.

    Raises:
        InputError: if there is none, it can't be read, or its version or its model is none.
    """
    path = given_path("folder", folder) / CONFIG
    if not os.path.lexists(path):
        raise InputError(f"{path_said(folder)} is no run folder: {CONFIG} can't be read (there is none).")
    config = read_yaml(path)
    if not isinstance(config, dict) or "model" not in config:
        raise InputError(f"{path_said(path)} has no entry 'model'; was it written by save() or pyro-vae train?")
    check_format(config, CONFIG_FORMAT, path_said(path))
    checked(config["model"], MODEL_ENTRIES, f"{path_said(path)}, model")
    return config


def run_entries(config: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """What a run's config says of its data and its scores, checked.

    Args:
        config: what `read_config` returned.
        folder: it was read from, for messages.

    Raises:
        InputError: naming the entry that is missing or odd.
    """
    if "data" not in config:
        raise InputError(
            f"{path_said(folder)} does not say which data it was trained on; score it with log_likelihood() in Python."
        )
    return checked(config, CONFIG_ENTRIES, path_said(Path(folder) / CONFIG))


def load(folder: str | Path, *, pair: PairLike | None = None, allow: Sequence[str] = (), **given: Any) -> Any:
    """The pair that `save` wrote, rebuilt from its config and given its weights, on the CPU. Nothing is unpickled.

    Args:
        folder: a run folder.
        pair: a hand-written pair to put the weights into; it can't be rebuilt from a config.
        allow: modules outside pyro_vae whose classes the config may name.
        **given: arguments that the config can't hold, such as encoder=MyEncoder().

    Raises:
        InputError: if a file is missing or does not fit, the config names code that is not allowed, or a weight is not
            finite.
    """
    config = read_config(folder)
    path = Path(folder) / WEIGHTS
    size = weights_size(path)
    if pair is None and given.get("model") is None and config["model"].get("init_args") == GIVEN:
        raise InputError(
            f"{folder} holds the weights of a hand-written pair; pass it: load(path, pair=Pair(model, guide))."
        )
    if pair is None:
        # The weights drawn by building are overwritten; a file of weights tells how large the model can be.
        with torch.random.fork_rng(devices=[]), bounded(16 * size, "The model"):
            pair = build(config["model"], allow=allow, given=given)
        if not isinstance(pair, torch.nn.Module) or not all(hasattr(pair, name) for name in ("model", "guide")):
            raise InputError(f"{path_said(folder)}: {config['model']['class_path']} is no pair of a model and a guide.")
    pair = as_pair(pair)
    load_state(pair, read_weights(path, {name: tensor.shape for name, tensor in state(pair).items()}))
    if isinstance(pair, torch.nn.Module):
        for name, parameter in pair.named_parameters():
            if not parameter.isfinite().all():
                raise InputError(f"{path_said(path)}: {name} holds values that are not finite.")
    return pair


def package_version() -> str:
    """The installed version of this package."""
    try:
        return version("pyro_vae")
    except PackageNotFoundError:
        return "unknown"
