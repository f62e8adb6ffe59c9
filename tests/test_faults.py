"""Faults from outside: signals, a full disk, a folder that is gone, two processes in one folder, lack of memory."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pyro_vae import VAE, fit, load, log_likelihood
from pyro_vae.cli import main
from pyro_vae.data import Stream
from pyro_vae.data.files import CannotWrite, _host, sweep, write_text
from pyro_vae.errors import InputError
from pyro_vae.runs.lock import InUse, locked
from pyro_vae.runs.log import RunLog
from pyro_vae.runs.saving import read_config
from pyro_vae.training import loop
from pyro_vae.training.faults import OutOfMemory, Terminated, WorkerKilled
from tests.component_table import vae
from tests.conftest import random_states, switches
from tests.long.kills import check

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def interruptible():
    """A shell's background jobs are started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def plain_folders(monkeypatch):
    """No figures and no TensorBoard events, which take most of a short run's time."""
    monkeypatch.setattr("pyro_vae.report.figures", lambda *arguments: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def made() -> VAE:
    pyro.set_rng_seed(1)
    return vae(encoder=torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Dropout(0.3), torch.nn.Linear(6, 4)))


def data() -> torch.Tensor:
    return torch.rand(60, 4, generator=torch.Generator().manual_seed(0))


SETTINGS = {
    "epochs": 3, "batch_size": 10, "seed": 3, "binarize": "dynamic", "schedule": "cosine", "compile": "eager",
    "progress": False, "device": "cpu",
}  # fmt: skip


def weights(pair: torch.nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in pair.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def losses(result) -> list[float]:
    return [row["loss"] for row in result.history]


def sent_at(monkeypatch, step: int, number: int, times: int = 1) -> None:
    """Has a signal come as the run's step of that number begins."""
    original, count = loop.Trainer._step, 0

    def counting(self, *arguments):
        nonlocal count
        count += 1
        if count == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
                time.sleep(0.001)
        return original(self, *arguments)

    monkeypatch.setattr(loop.Trainer, "_step", counting)


# --- signals and checkpoints inside an epoch ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 6, 9, 18])
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)], ids=["TERM", "INT"]
)
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on_to_the_bit(tmp_path, monkeypatch, step, number, raised):
    extra = {"validation": data()[:5], "ema": 0.9}
    whole = made()
    result = fit(whole, data(), out=tmp_path / "whole", **SETTINGS, **extra)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        sent_at(patched, step, number)
        with pytest.raises(raised):
            fit(made(), data(), out=tmp_path / "cut", **SETTINGS, **extra)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    pyro.set_rng_seed(99)
    resumed = made()
    again = fit(resumed, data(), out=tmp_path / "cut", resume=True, **SETTINGS, **extra)
    assert same(weights(whole), weights(resumed))
    assert losses(result) == losses(again)
    assert same(weights(load(tmp_path / "whole", encoder=made().encoder.module)), weights(whole))


def test_a_second_interruption_stops_at_once(tmp_path, monkeypatch):
    sent_at(monkeypatch, 3, signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):
        fit(made(), data(), out=tmp_path, **SETTINGS)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_signal_while_validation_data_are_scored_leaves_a_checkpoint(tmp_path, monkeypatch):
    whole = made()
    result = fit(whole, data(), validation=data()[:5], **SETTINGS)
    original = loop.elbo_terms

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "elbo_terms", interrupted)
        with pytest.raises(Terminated):
            fit(made(), data(), validation=data()[:5], out=tmp_path, **SETTINGS)
    resumed = made()
    again = fit(resumed, data(), validation=data()[:5], out=tmp_path, resume=True, **SETTINGS)
    assert same(weights(whole), weights(resumed))
    assert [row["validation_elbo"] for row in result.history] == [row["validation_elbo"] for row in again.history]


class Cut(Exception):
    """Breaks a run off without warning."""


@pytest.mark.parametrize("kind", ["tensor", "stream", "loader"])
def test_a_run_goes_on_from_a_checkpoint_inside_an_epoch_to_the_bit(tmp_path, monkeypatch, kind):
    def source():
        if kind == "tensor":
            return data()
        dataset = torch.utils.data.TensorDataset(data())
        if kind == "stream":
            return Stream(dataset, num_workers=0)
        return DataLoader(dataset, batch_size=10, shuffle=True)

    whole = made()
    result = fit(whole, source(), **SETTINGS)
    original, count = loop.Trainer._step, 0

    def cut(self, *arguments):
        nonlocal count
        count += 1
        if count == 11:
            raise Cut
        return original(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "_step", cut)
        with pytest.raises(Cut):
            fit(made(), source(), out=tmp_path, checkpoint_steps=2, keep_checkpoints=3, **SETTINGS)
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == [f"checkpoint-{epoch:06d}-{step:09d}.safetensors" for epoch, step in ((1, 0), (1, 2), (1, 4))]
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == (tmp_path / kept[-1]).read_bytes()
    pyro.set_rng_seed(5)
    resumed = made()
    again = fit(resumed, source(), out=tmp_path, resume=True, **SETTINGS)
    assert same(weights(whole), weights(resumed))
    assert losses(result) == losses(again)


def test_checkpoints_by_time_do_not_follow_a_clock_that_is_set_back(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(RunLog, "checkpoint", lambda self, state, epochs, step: written.append((epochs, step)))
    now = [1e9]

    def set_back() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", set_back)
    result = fit(made(), data(), out=tmp_path / "a", checkpoint_minutes=1e-9, **SETTINGS)
    assert written[:7] == [(0, step) for step in range(1, 7)] + [(1, 0)]
    assert all(row["seconds"] > 0 for row in result.history)
    written.clear()
    fit(made(), data(), out=tmp_path / "b", checkpoint_minutes=1000.0, **SETTINGS)
    assert written == [(1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("checkpoint_steps", 0), ("checkpoint_steps", "3"), ("checkpoint_minutes", -1.0), ("keep_checkpoints", 0)],
)
def test_odd_intervals_are_refused(argument, value):
    with pytest.raises(InputError, match=argument):
        fit(made(), data(), **SETTINGS, **{argument: value})


# --- the folder -----------------------------------------------------------------------------------------------------------


def holding(folder: str, ready, done) -> None:
    with locked(Path(folder)):
        ready.set()
        done.wait(30)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=holding, args=(str(tmp_path), ready, done))
    other.start()
    assert ready.wait(30)
    with pytest.raises(InUse, match=f"in use by process {other.pid} on "):
        fit(made(), data(), out=tmp_path, **SETTINGS)
    other.kill()
    other.join()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == other.pid  # left behind, and no hindrance
    fit(made(), data(), out=tmp_path, **SETTINGS)
    assert not (tmp_path / ".lock").exists()


def test_two_runs_of_one_process_do_not_train_in_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(InUse, match="another run of this process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_pipe_in_place_of_the_lock_is_told(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(InputError, match="no regular file"), locked(tmp_path):
        pass


def test_what_killed_processes_have_left_is_swept(tmp_path):
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    write_text(tmp_path / "kept.txt", "kept")
    for name in (".config.yaml.abc.tmp", f".test.json.{_host()}-{gone.pid}-ab_c.tmp"):
        (tmp_path / name).write_text("")
    mine = tmp_path / f".test.json.{_host()}-{os.getpid()}-abc.tmp"
    young = tmp_path / ".other.abc.tmp"  # of another machine, perhaps
    for path in (mine, young, tmp_path / ".unrelated"):
        path.write_text("")
    sweep(tmp_path, owned=("config.yaml",))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, young.name, ".unrelated", "kept.txt"])
    os.utime(young, (0, 0))
    sweep(tmp_path)
    assert not young.exists()


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_later(tmp_path, monkeypatch, capsys):
    """A limit on the size of files refuses writes as a full disk does."""
    whole = made()
    fit(whole, data(), **SETTINGS)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    original = RunLog.epoch

    def full(self, history, checkpoint):
        if len(history) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        try:
            original(self, history, checkpoint)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "epoch", full)
        with pytest.raises(CannotWrite, match=r"checkpoint\.safetensors can't be written: File too large"):
            fit(made(), data(), out=tmp_path, **SETTINGS)
    assert not list(tmp_path.glob(".*.tmp"))
    resumed = made()
    fit(resumed, data(), out=tmp_path, resume=True, **SETTINGS)
    assert same(weights(whole), weights(resumed))

    def no_space(*arguments):
        raise CannotWrite("run/x can't be written: No space left on device.")

    monkeypatch.setattr("pyro_vae.cli.evaluate.evaluate", no_space)
    assert main(["evaluate", "run"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_can_not_be_written_is_told_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="out="):
        fit(made(), data(), out=tmp_path / "file" / "run", **SETTINGS)

    def read_only(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pyro_vae.runs.lock.os.open", read_only)
    with pytest.raises(InputError, match="can't be written: Read-only file system"):
        fit(made(), data(), out=tmp_path / "run", **SETTINGS)


def test_a_folder_that_vanishes_is_made_again(tmp_path, monkeypatch, caplog):
    original = RunLog.epoch

    def vanishing(self, history, checkpoint):
        if len(history) == 2:
            shutil.rmtree(tmp_path / "run")
        original(self, history, checkpoint)

    monkeypatch.setattr(RunLog, "epoch", vanishing)
    pair = made()
    fit(pair, data(), out=tmp_path / "run", config={"note": 1}, **SETTINGS)
    assert "has been removed" in caplog.text
    assert read_config(tmp_path / "run")["note"] == 1
    assert same(weights(load(tmp_path / "run", encoder=made().encoder.module)), weights(pair))


# --- memory and workers ---------------------------------------------------------------------------------------------------


def test_lack_of_memory_names_the_batch_and_what_to_lower(monkeypatch):
    original, count = loop.Trainer._step, 0

    def too_large(self, *arguments):
        nonlocal count
        count += 1
        if count == 8:
            torch.empty(2**60)
        return original(self, *arguments)

    monkeypatch.setattr(loop.Trainer, "_step", too_large)
    with pytest.raises(OutOfMemory, match=r"Epoch 2, batch 2 of 10 data: cpu is out of memory.*Lower batch_size=10"):
        fit(made(), data(), **SETTINGS)


def test_lack_of_memory_before_the_first_step_is_told_too():
    pair = made()
    pair.guide = lambda x: torch.empty(2**60)
    with pytest.raises(OutOfMemory, match="Before the first step.*Lower batch_size=10"):
        fit(pair, data(), **SETTINGS)


class Deadly(Dataset):
    """Kills the worker that reads datum 30."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, i: int) -> torch.Tensor:
        if i == 30 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return data()[i]


def test_a_data_worker_that_is_killed_is_told():
    with pytest.raises(WorkerKilled, match="Epoch 1, batch .* was killed"):
        fit(made(), Stream(Deadly(), num_workers=1), **SETTINGS)


# --- processes ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_leaves_on_sigterm_with_a_checkpoint(tmp_path):
    """Status 143, one line, and no temporary file."""
    words = [
        "train",
        "--epochs",
        "60",
        "--samples",
        "0",
        "--quiet",
        "--model.latent_dim",
        "2",
        "--fit.compile",
        "eager",
    ]
    command = [sys.executable, "-m", "pyro_vae", *words, "--out", "run"]
    run = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate()
    assert run.returncode == 143
    assert len(err.strip().splitlines()) == 1
    assert "--resume" in err
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_runs_that_are_killed_at_random_moments_end_equal(tmp_path):
    """Four kills; `python -m tests.long.kills` does two hundred."""
    kills, _ = check(tmp_path, wanted=4, seed=0)
    assert kills == 4


def scored(pair: VAE, x: torch.Tensor, answers) -> None:
    torch.set_num_threads(1)
    answers.put(log_likelihood(pair, x, 20, seed=0, compile="eager").mean)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_trained_pair_scores_the_same_in_another_process(method):
    pair, x = vae(), data().round()
    fit(pair, x, epochs=1, seed=0, compile="eager", progress=False, device="cpu")
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    child = context.Process(target=scored, args=(pair, x, answers))
    child.start()
    found = answers.get()
    child.join()
    assert found == pytest.approx(log_likelihood(pair, x, 20, seed=0, compile="eager").mean, abs=1e-6)


def test_fits_in_two_threads_end_as_each_alone():
    def run(seed: int, results: dict) -> None:
        pair = pairs[seed]
        results[seed] = losses(fit(pair, data(), **{**SETTINGS, "seed": seed}))

    alone, together, pairs = {}, {}, {seed: made() for seed in (1, 2)}
    for seed in (1, 2):
        run(seed, alone)
    pairs = {seed: made() for seed in (1, 2)}
    threads = [threading.Thread(target=run, args=(seed, together)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def process_state() -> dict[str, object]:
    """What belongs to the process and not to a run."""
    return {
        **switches(),
        "interop threads": torch.get_num_interop_threads(),
        "random states": random_states(),
        "numpy's random state": str(np.random.get_state()),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "warnings": list(warnings.filters),
        "import path": list(sys.path),
        "threads": threading.active_count(),
        "hooks": [
            len(hooks)
            for name, hooks in vars(torch.nn.modules.module).items()
            if name.startswith("_global") and "hooks" in name
        ],
        "garbage": (gc.isenabled(), gc.get_threshold(), len(gc.callbacks)),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "logging": (logging.root.level, list(logging.root.handlers), list(logging.getLogger("pyro_vae").handlers)),
        "handlers of effects": len(pyro.poutine.runtime._PYRO_STACK),
        "except hook": (sys.excepthook, threading.excepthook),
    }


@pytest.mark.parametrize("compile", ["eager", "graph"])
@pytest.mark.parametrize("raises", [False, True], ids=["ends", "raises"])
def test_fit_leaves_the_process_as_it_was(tmp_path, monkeypatch, compile, raises):
    fit(vae(), data().round(), epochs=1, seed=0, compile=compile, progress=False, device="cpu")  # imports and caches
    if raises:
        monkeypatch.setattr(loop.Trainer, "_row", lambda *arguments: 1 / 0)
    pair, x = vae(), data().round()
    before = process_state()
    with pytest.raises(ZeroDivisionError) if raises else contextlib.nullcontext():
        fit(pair, x, out=tmp_path, **{**SETTINGS, "compile": compile, "binarize": None})
    after = process_state()
    assert {name for name in before if before[name] != after[name]} == set()
