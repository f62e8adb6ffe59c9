"""Programs that read the world outside: environment, clock, files, interpreter and library settings."""

import contextvars
import ctypes
import datetime
import json
import mmap
import multiprocessing
import os
import queue
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from tests.engine.zoo.containers import scaled
from tests.engine.zoo.program import alone, decoder_net, observe, program

CONTEXT = contextvars.ContextVar("zoo_scale", default=1.0)


def restored(made, close):
    """A program with what puts the world back."""
    made.close = close
    return made


@program("environ")
def environment_variable():
    """`os.environ["ZOO_SCALE"]`."""
    os.environ["ZOO_SCALE"] = "1.0"
    made = scaled(lambda: float(os.environ["ZOO_SCALE"]), lambda value: os.environ.update(ZOO_SCALE=str(value)))
    return restored(made, lambda: os.environ.pop("ZOO_SCALE", None))


@program("getenv", "environ")
def environment_by_getenv():
    """`os.getenv` with a default."""
    made = scaled(lambda: float(os.getenv("ZOO_SCALE", "1.0")), lambda value: os.environ.update(ZOO_SCALE=str(value)))
    return restored(made, lambda: os.environ.pop("ZOO_SCALE", None))


def zone(value):
    """Sets the time zone to so many hours."""
    os.environ["TZ"] = f"ZOO{-value:+.0f}"
    time.tzset()


def no_zone():
    os.environ.pop("TZ", None)
    time.tzset()


@program("time", "clock")
def clock_local_time():
    """`time.localtime()`, under a time zone that changes."""
    zone(1)
    made = scaled(lambda: 1.0 + time.localtime().tm_gmtoff / 36000, lambda value: zone(2 * value))
    return restored(made, no_zone)


@program("datetime", "clock", "now")
def clock_datetime():
    """`datetime.now()`, under a time zone that changes."""
    zone(1)

    def read():
        return 1.0 + datetime.datetime.now().astimezone().utcoffset().total_seconds() / 36000

    return restored(scaled(read, lambda value: zone(2 * value)), no_zone)


@program()
def clock_frozen_by_tests():
    """`time.time` is replaced, as libraries that freeze time do."""
    original, now = time.time, [1.0]
    time.time = lambda: now[0]
    made = scaled(lambda: time.time(), lambda value: now.__setitem__(0, value))
    return restored(made, lambda: setattr(time, "time", original))


@program("time", "clock", "perf_counter", visible=False)
def clock_for_timing():
    """`time.perf_counter()`, to time a part of the model."""
    decoder, seconds = decoder_net(), []

    def model(x):
        start = time.perf_counter()
        observe(x, decoder)
        seconds.append(time.perf_counter() - start)

    return alone(model, kept=lambda: len(seconds))


@program("time", "clock", "monotonic", visible=False)
def clock_as_deadline():
    """`time.monotonic() > deadline`, which never comes."""
    deadline = time.monotonic() + 1e6
    return alone(scaled(lambda: 2.0 if time.monotonic() > deadline else 1.0, lambda value: None).model)


@program("open", "file", "path", "read")
def file_read_in_model():
    """A JSON file that the model reads."""
    place = tempfile.TemporaryDirectory()
    path = Path(place.name) / "config.json"

    def write(value):
        path.write_text(json.dumps({"scale": value}))

    write(1.0)
    return restored(scaled(lambda: json.loads(path.read_text())["scale"], write), place.cleanup)


@program("open", "file", "path", "stat", "exists")
def file_exists():
    """Whether a file exists."""
    place = tempfile.TemporaryDirectory()
    path = Path(place.name) / "wide"

    def write(value):
        path.unlink() if path.exists() else path.touch()

    return restored(scaled(lambda: 2.0 if path.exists() else 1.0, write), place.cleanup)


@program("getcwd", "directory", "os", "cwd")
def working_directory():
    """The working directory's name."""
    before, place = os.getcwd(), tempfile.TemporaryDirectory()

    def write(value):
        os.chdir(before if os.getcwd() != before else place.name)

    def close():
        os.chdir(before)
        place.cleanup()

    return restored(scaled(lambda: 1.0 if os.getcwd() == before else 2.0, write), close)


@program()
def context_variable():
    """A contextvars.ContextVar."""
    token = CONTEXT.set(1.0)
    return restored(scaled(lambda: CONTEXT.get(), CONTEXT.set), lambda: CONTEXT.reset(token))


@program()
def thread_local():
    """A threading.local."""
    local = threading.local()
    local.scale = 1.0
    return scaled(lambda: local.scale, lambda value: setattr(local, "scale", value))


@program()
def event():
    """A threading.Event."""
    flag = threading.Event()
    return scaled(lambda: 2.0 if flag.is_set() else 1.0, lambda value: flag.clear() if flag.is_set() else flag.set())


@program()
def queue_size():
    """The size of a queue.Queue."""
    waiting = queue.Queue()
    return scaled(lambda: 1.0 + 0.5 * waiting.qsize(), waiting.put)


@program()
def shared_value():
    """A multiprocessing.Value."""
    shared = multiprocessing.Value("d", 1.0)
    return scaled(lambda: shared.value, lambda value: setattr(shared, "value", value))


@program()
def foreign_number():
    """A ctypes.c_double."""
    number = ctypes.c_double(1.0)
    return scaled(lambda: number.value, lambda value: setattr(number, "value", value))


@program()
def memory_map():
    """An anonymous memory map."""
    memory = mmap.mmap(-1, 16)
    memory[0] = 10
    return restored(scaled(lambda: memory[0] / 10, lambda value: memory.__setitem__(0, int(10 * value))), memory.close)


@program("connection", "sqlite", "Connection", "cursor", "sql")
def data_base():
    """A table in a data base."""
    connection = sqlite3.connect(":memory:")
    connection.execute("create table scale (value real)")
    connection.execute("insert into scale values (1.0)")
    made = scaled(
        lambda: connection.execute("select value from scale").fetchone()[0],
        lambda value: connection.execute("update scale set value = ?", (value,)),
    )
    return restored(made, connection.close)


@program("file", "seek", "read")
def open_file_read():
    """An open file, which the model rewinds and reads."""
    file = tempfile.TemporaryFile("w+")  # noqa: SIM115

    def write(value):
        file.seek(0)
        file.truncate()
        file.write(str(value))

    def read():
        file.seek(0)
        return float(file.read())

    write(1.0)
    return restored(scaled(read, write), file.close)


@program("reads or writes files")
def array_file_read_in_model():
    """A file that `np.load` reads in the model."""
    path = Path(tempfile.mkdtemp()) / "scale.npy"
    np.save(path, np.float32(1.0))
    return scaled(lambda: float(np.load(path)), lambda value: np.save(path, np.float32(value)))


@program("reads or writes files", visible=False)
def array_file_written_in_model():
    """A file that `ndarray.tofile` writes in the model."""
    path, decoder, sizes = Path(tempfile.mkdtemp()) / "out.bin", decoder_net(), []

    def model(x):
        np.ones(3).tofile(path)
        observe(x, decoder)

    def take(run, step):
        path.unlink(missing_ok=True)
        loss = run.svi.step(*run.args(step))
        sizes.append(path.stat().st_size)
        return loss

    return alone(model, take=take, kept=lambda: sizes)
