"""A lock on a run folder: one process trains in it at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pyro_vae.data.opening import path_said, reason_of
from pyro_vae.errors import InputError

LOCK = ".lock"
logger = logging.getLogger("pyro_vae")
_held: set[str] = set()
_guard = threading.Lock()


class InUse(InputError):
    """Another process trains in this folder."""


@contextlib.contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """The folder, made if it is not there, for this process alone.

    The lock is the system's, on the file `.lock`: it goes with the process, however that ends. The file goes too, unless the
    process was killed; then the next lock uses it again. Where the system knows no such locks there is none.

    Raises:
        InUse: if another process, or another run of this one, holds it; names the process.
        InputError: if the folder can't be made or written.
    """
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        name = os.path.realpath(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"out={path_said(folder)!r} can't be made: {reason_of(error)}.") from error
    with _guard:
        if name in _held:
            raise InUse(f"out={path_said(folder)!r} is in use by another run of this process; take another folder.")
        _held.add(name)
    try:
        handle = _taken(folder)
        try:
            yield
        finally:
            _given_back(folder / LOCK, handle)
    finally:
        with _guard:
            _held.discard(name)


def _taken(folder: Path) -> int:
    """An open handle of the lock's file, which is locked."""
    path = folder / LOCK
    while True:
        try:
            handle = os.open(
                path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0), 0o644
            )
        except OSError as error:
            raise InputError(f"out={path_said(folder)!r} can't be written: {reason_of(error)}.") from error
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise InputError(f"{path_said(path)} is no regular file; remove it.")
            _lock(handle, folder)
            if _is(handle, path):
                who = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
                with contextlib.suppress(OSError):  # a full disk: the lock itself holds
                    os.ftruncate(handle, 0)
                    os.write(handle, json.dumps(who).encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the file was removed by the process that held it: take the new one


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: workers that it forks do not keep it
    except (BlockingIOError, PermissionError) as error:
        raise InUse(
            f"out={path_said(folder)!r} is in use by {_holder(handle)}; wait for it, or take another folder."
        ) from error
    except OSError as error:
        logger.warning("%s is not locked, since its file system has no locks (%s).", folder, error.strerror)


def _is(handle: int, path: Path) -> bool:
    """Whether the path still names the file that is open."""
    try:
        mine, there = os.fstat(handle), os.stat(path)
    except OSError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _holder(handle: int) -> str:
    """The process that holds a lock, as its file says."""
    try:
        who = json.loads(os.pread(handle, 1000, 0))
        return f"process {int(who['pid'])} on {str(who['host'])[:50]} since {str(who['since'])[:20]}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


def _given_back(path: Path, handle: int) -> None:
    with contextlib.suppress(OSError):
        if _is(handle, path):
            path.unlink()
    os.close(handle)
