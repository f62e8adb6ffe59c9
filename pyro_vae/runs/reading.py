"""Files that come from elsewhere, read with care: YAML of bounded size, depth and number of values; JSON; weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data.files import check_header, opened_tensors
from pyro_vae.data.opening import path_said, read_text, regular_file
from pyro_vae.errors import InputError, first_sentence

#: Most bytes of a YAML file, most values in it with anchors written out, and the deepest nesting.
YAML_BYTES, YAML_VALUES, YAML_DEPTH = 128 * 1024, 20_000, 64
#: Most bytes of a JSON file of scores.
JSON_BYTES = 16 * 1024 * 1024


def read_yaml(path: str | Path) -> Any:
    """The plain values in a YAML file.

    Raises:
        InputError: if it can't be read, is no regular file or no UTF-8, is not YAML, or is too large in one of the ways that
            `parse_yaml` tells.
    """
    return parse_yaml(read_text(path, YAML_BYTES), path_said(path))


def parse_yaml(text: str, where: str) -> Any:
    """The plain values that a YAML text holds; no tag builds an object.

    Args:
        text: to be parsed.
        where: it stands, for messages.

    Raises:
        InputError: if it is not YAML, is nested more than `YAML_DEPTH` deep, or holds more than `YAML_VALUES` values once
            its anchors are written out.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Stops where the nesting is too deep, before it costs time."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > YAML_DEPTH:
                raise RecursionError
            node = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
            self.depth -= 1
            return node

    try:
        loader = Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            if _values(root, {}, 0) > YAML_VALUES:
                raise InputError(f"{where} holds more than {YAML_VALUES:,} values once its anchors are written out.")
            return loader.construct_document(root)
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{where} is nested more than {YAML_DEPTH} deep.") from error
    except Exception as error:  # PyYAML's constructors raise what int(), dates and dicts raise
        raise InputError(f"{where} is not YAML: {first_sentence(error)}.") from error


def _values(node: Any, known: dict[int, int], depth: int) -> int:
    """How many values a node stands for; the same node may be met at several places."""
    if depth > YAML_DEPTH:
        raise RecursionError
    if id(node) not in known:
        known[id(node)] = YAML_VALUES  # until it is counted: a node that holds itself is too large
        parts = node.value if isinstance(node.value, list) else []
        inner = [part for entry in parts for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_values(part, known, depth + 1) for part in inner)
    return known[id(node)]


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: if it can't be read, or is not JSON.
    """
    text = read_text(path, JSON_BYTES)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path_said(path)} is not JSON: {first_sentence(error)}.") from error


def weights_size(path: str | Path) -> int:
    """Bytes of the tensors in a weights file, by its header alone.

    Raises:
        InputError: if it can't be read.
    """
    check_header(regular_file(path))
    return Path(path).stat().st_size


def read_weights(path: str | Path, wanted: Mapping[str, torch.Size] | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, on the CPU.

    Args:
        path: of the file.
        wanted: shapes by name that the model has; a tensor of another shape is refused before it is read.

    Raises:
        InputError: if the file can't be read, or a shape differs.
    """
    path = regular_file(path)
    try:
        check_header(path)
        with opened_tensors(path) as file:
            names = list(file.keys())
            for name in names:
                shape = torch.Size(file.get_slice(name).get_shape())
                if wanted is not None and name in wanted and shape != wanted[name]:
                    raise InputError(
                        f"{path_said(path)}: the weights do not fit the model: {name} has shape {tuple(shape)}, but the "
                        f"model's has {tuple(wanted[name])}."
                    )
            return {name: file.get_tensor(name) for name in names}
    except InputError:
        raise
    except Exception as error:  # safetensors' own, and torch's for dtypes that it does not know
        raise InputError(f"{path_said(path)} can't be read: {first_sentence(error)}.") from error
