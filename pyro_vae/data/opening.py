"""Which files are opened: regular ones of bounded size. Everything else is told in a sentence, before it is read."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from pyro_vae.errors import InputError, first_sentence

MIB = 2**20

_KINDS = (
    (stat.S_ISDIR, "it is a folder"),
    (stat.S_ISFIFO, "it is a named pipe"),
    (stat.S_ISCHR, "it is a device"),
    (stat.S_ISBLK, "it is a device"),
    (stat.S_ISSOCK, "it is a socket"),
)


def given_path(name: str, value: Any) -> Path:
    """`value` as a path.

    Args:
        name: of the argument, for messages.
        value: a string or a path.

    Raises:
        InputError: if it is nothing of the kind, empty, or holds a null byte.
    """
    if not isinstance(value, (str, os.PathLike)) or isinstance(value, bytes):
        raise InputError(f"{name}={value!r} must be a path: a string or a pathlib.Path.")
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{name}={text!r} is no path: it is empty or holds a null byte.")
    return Path(text)


def regular_file(path: str | Path, limit: int | None = None) -> Path:
    """The path of a file that may be opened, after a look at what it is.

    Args:
        path: of the file; links are followed.
        limit: most bytes that it may have; None: half of the memory that is free.

    Raises:
        InputError: if there is none, it is no regular file (opening a pipe waits for ever, a device may never end), or it
            is larger than the limit.
    """
    path = given_path("path", path)
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"{path_said(path)} can't be read: {reason_of(error)}.") from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((said for is_kind, said in _KINDS if is_kind(status.st_mode)), "it is a special file")
        raise InputError(f"{path_said(path)} can't be read: {kind}; wanted: a regular file.")
    limit = memory_limit() if limit is None else limit
    if status.st_size > limit:
        raise InputError(
            f"{path_said(path)} can't be read: it has {size_said(status.st_size)}, above {size_said(limit)}."
        )
    return path


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        InputError: as `regular_file`, and if it can't be read to its end.
    """
    path = regular_file(path, limit)
    try:
        # Not to wait where the file has just been replaced by a pipe.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path_said(path)} can't be read: {reason_of(error)}.") from error
    if len(content) > limit:
        raise InputError(f"{path_said(path)} can't be read: it has more than {size_said(limit)}.")
    return content


def read_text(path: str | Path, limit: int) -> str:
    """The text of a regular UTF-8 file of at most `limit` bytes.

    Raises:
        InputError: as `read_bytes`, and if it is not UTF-8.
    """
    content = read_bytes(path, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path_said(path)} can't be read: byte {error.start} is not UTF-8 text.") from error


def check_unpacked(path: Path, claimed: int, ratio: int = 500) -> None:
    """Refuses a file that would take far more memory than it has on the disk.

    Args:
        path: of the file.
        claimed: bytes that its content takes once it is read.
        ratio: how many times the file's own size the content may be; up to 64 MiB are always allowed.

    Raises:
        InputError: if the content is larger than that, or than half of the memory that is free.
    """
    size = path.stat().st_size
    if claimed > 64 * MIB and claimed > ratio * size:
        raise InputError(
            f"{path_said(path)} can't be read: it has {size_said(size)}, but says that it holds {size_said(claimed)}."
        )
    if claimed > memory_limit():
        raise InputError(
            f"{path_said(path)} can't be read: it holds {size_said(claimed)}, above {size_said(memory_limit())}, half of "
            "the memory that is free."
        )


def memory_limit() -> int:
    """Half of the memory that is free, in bytes."""
    import torch

    from pyro_vae.data import reading

    return reading._free_bytes(torch.device("cpu")) // 2


def path_said(path: str | Path) -> str:
    """A path for a message: on one line, and cut in its middle where it is very long."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    text = re.sub(r"[\x00-\x1f\x7f]", "?", text)
    return text if len(text) <= 200 else f"{text[:90]}...{text[-90:]}"


def reason_of(error: BaseException) -> str:
    """Why the system refused, in its own words."""
    return getattr(error, "strerror", None) or first_sentence(error)


def size_said(count: int) -> str:
    """A number of bytes in words."""
    for unit, size in (("GiB", 2**30), ("MiB", MIB), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"
