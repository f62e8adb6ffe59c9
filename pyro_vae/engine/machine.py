"""What is fastest on this machine: found out once by timing, and kept, so that later runs do what earlier ones did."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


def remembered(question: str, find_out: Callable[[], bool]) -> bool:
    """The answer to a question about this machine: from an earlier run, or found out now and kept for later ones.

    It is kept in `pyro_vae/machine.json` of the user's cache folder ($XDG_CACHE_HOME, else ~/.cache), by processor,
    torch's version and the number of threads; delete that file to have it found out anew.
    """
    machine = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
    key = f"{question} ({machine}, torch {torch.__version__}, {torch.get_num_threads()} threads)"
    known = _known()
    if key not in known:
        known[key] = find_out()
        with contextlib.suppress(OSError):  # no place to keep it: it is then found out anew by the next process
            _write({**_read(), **known})
    return known[key]


def best_seconds(*ways: Callable[[], Any], turns: int = 60) -> list[float]:
    """The shortest time of each, run in turn and often, so that a busy machine tells the same as an idle one."""
    best = [math.inf] * len(ways)
    for _ in range(turns):
        for i, way in enumerate(ways):
            start = time.perf_counter()
            way()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pyro_vae" / "machine.json"


def _write(known: dict[str, bool]) -> None:
    _file().parent.mkdir(parents=True, exist_ok=True)
    temporary = _file().with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(known, indent=0))
    os.replace(temporary, _file())


def _read() -> dict[str, bool]:
    try:
        return json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}


@functools.cache
def _known() -> dict[str, bool]:
    return _read()


# --- memory -------------------------------------------------------------------------------------------------------------

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_inside = 0


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Has the C library keep what is freed for the next tensors, rather than hand it back and fetch it anew.

    glibc returns large blocks to the system at once, and meets a page fault every 4 KiB when they come again; with the
    tensors of a large chunk that took a fifth of the time. On leaving, glibc goes back to its own ways. Elsewhere nothing
    is done.
    """
    global _inside
    libc = _glibc()
    if libc is None or _inside:
        yield
        return
    _inside += 1
    try:
        libc.mallopt(_MMAP_THRESHOLD, 2**25)  # the largest that all versions take
        libc.mallopt(_TRIM_THRESHOLD, 2**30)
        yield
    finally:
        _inside -= 1
        libc.mallopt(_TRIM_THRESHOLD, 2**26)  # to which glibc itself raises it when it has met large blocks


@functools.cache
def _glibc() -> Any:
    import ctypes

    if platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") else None
