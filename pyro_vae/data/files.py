"""Files that are written whole or not at all: to a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pyro_vae.errors import InputError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to `path` at the end; removed if the block fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text`, replacing what was there in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: str | Path, tree: Any) -> None:
    """Writes nested dicts and lists of tensors and plain values as one safetensors file.

    Args:
        path: file to write.
        tree: dicts with string keys, lists, tensors, and what JSON can hold.
    """
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    skeleton = _take_tensors(tree, tensors)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"tree": json.dumps(skeleton)})


def read_tensors(path: str | Path) -> Any:
    """What `write_tensors` wrote, on the CPU. Nothing is unpickled.

    Raises:
        InputError: if the file is missing or no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            skeleton = json.loads((file.metadata() or {})["tree"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} can't be read as a file of pyro_vae: {error}.") from error
    return _put_tensors(skeleton, tensors)


def _take_tensors(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, torch.Tensor):
        key = str(len(tensors))
        tensors[key] = tree.detach().to("cpu", copy=True).contiguous()
        return {"tensor": key}
    if isinstance(tree, dict):
        return {"dict": {str(k): _take_tensors(v, tensors) for k, v in tree.items()}}
    if isinstance(tree, (list, tuple)):
        return {"list": [_take_tensors(v, tensors) for v in tree]}
    return {"value": tree}


def _put_tensors(skeleton: Any, tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: _put_tensors(v, tensors) for k, v in content.items()}
    if kind == "list":
        return [_put_tensors(v, tensors) for v in content]
    return content
