"""Files that are written whole or not at all: to a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data.opening import path_said, reason_of, regular_file
from pyro_vae.errors import InputError, first_sentence


class CannotWrite(OSError):
    """A file can't be written, as on a full disk; what was there before is untouched."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to `path` at the end; removed if the block fails.

    The name holds this machine's and this process's, so that `sweep` knows what a killed process has left.

    Raises:
        CannotWrite: if the system refuses, with its reason.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{path.name}.{_host()}-{os.getpid()}-"
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".tmp")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except Exception as error:
        if (reason := _why_not_written(error)) is None:
            raise
        raise CannotWrite(
            f"{path_said(path)} can't be written: {reason}. What was there before is untouched."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _why_not_written(error: Exception) -> str | None:
    """The system's reason, also where safetensors has put it into a sentence of its own; None for other errors."""
    if isinstance(error, OSError):
        return reason_of(error)
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"([^:]+) \(os error \d+\)", str(error))):
        return found[1].strip()
    return None


def _host() -> str:
    """This machine's name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]", "", platform.node())[:20] or "host"


def sweep(folder: Path, owned: Iterable[str] = ()) -> list[Path]:
    """Removes the temporary files that killed processes have left in a folder and its figures.

    Args:
        folder: to look at; nothing is done if it is not there.
        owned: names of files that nobody but the caller writes just now: all their temporary files go. Those of other
            files go if their process lives no more, or, where that can't be known, after a day.

    Returns:
        What was removed.
    """
    removed = []
    for place in (folder, folder / "figures"):
        with contextlib.suppress(OSError):
            for path in place.glob(".*.tmp"):
                if not _abandoned(path, owned):
                    continue
                with contextlib.suppress(OSError):
                    path.unlink()
                    removed.append(path)
    return removed


def _abandoned(path: Path, owned: Iterable[str]) -> bool:
    found = re.fullmatch(r"\.(.+?)\.(?:(\w+)-(\d+)-)?\w+\.tmp", path.name)
    if found is None or path.is_symlink() or not path.is_file():
        return False
    if found[1] in owned:
        return True
    if found[2] == _host():
        return not alive(int(found[3]))
    return time.time() - path.stat().st_mtime > 24 * 3600


def alive(pid: int) -> bool:
    """Whether a process of this machine lives."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OverflowError, PermissionError):
        return True
    return True


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
        InputError: if the file is missing, no such file, damaged, or larger than half of the free memory.
    """
    path = regular_file(path)
    try:
        check_header(path)
        with opened_tensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            skeleton = json.loads((file.metadata() or {})["tree"])
        return _put_tensors(skeleton, tensors)
    except InputError:
        raise
    except Exception as error:  # safetensors, JSON and the tree have exceptions of their own
        said = "it is nested too deeply" if isinstance(error, RecursionError) else first_sentence(error)
        raise InputError(f"{path_said(path)} can't be read as a file of pyro_vae: {said}.") from error


def opened_tensors(path: Path) -> Any:
    """A safetensors file, opened to look at its tensors one by one."""
    from safetensors import safe_open

    return safe_open(str(path), framework="pt")


def check_header(path: Path, limit: int = 100_000_000) -> None:
    """Refuses a safetensors file whose header claims more than the file holds, or more than the format allows.

    Raises:
        InputError: naming the file.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise InputError(f"{path_said(path)} can't be read: {reason_of(error)}.") from error
    if length > min(limit, path.stat().st_size):
        raise InputError(f"{path_said(path)} can't be read: it is no safetensors file, or cut off in its header.")


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
    if kind == "value" and not isinstance(content, (dict, list)):
        return content
    raise ValueError(f"a part of kind {str(kind)[:20]!r} is not known")
