"""Files from elsewhere: reading them returns, or raises an InputError of one line; nothing foreign runs."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyro_vae import data, fit, load, save
from pyro_vae.cli import main
from pyro_vae.cli.naming import check_options
from pyro_vae.cli.parsing import CommandError
from pyro_vae.data.files import read_tensors, write_tensors
from pyro_vae.data.opening import read_text, regular_file
from pyro_vae.errors import InputError
from pyro_vae.objectives import ELBO
from pyro_vae.runs import build, read_config, run_entries
from pyro_vae.runs.budget import bounded
from pyro_vae.runs.log import RunLog
from pyro_vae.runs.reading import parse_yaml, read_json, read_weights
from pyro_vae.runs.schema import CHECKPOINT_ENTRIES, CONFIG_ENTRIES, MODEL_ENTRIES, checked
from pyro_vae.training.checkpoint import checkpoint, read_checkpoint, restore
from pyro_vae.training.loop import Trainer
from pyro_vae.training.place import Place, random_states
from pyro_vae.training.settings import Settings
from tests.component_table import vae
from tests.crafted import ODD, WAYS, bytes_damage, damage, damaged, places

RUN = Path(__file__).parent / "data" / "run_v0_1"
CONFIG = yaml.safe_load((RUN / "config.yaml").read_text())
MIB = 2**20

many = functools.partial(
    settings, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def told(function, *arguments) -> None:
    """Calls a reader; anything but a result or an InputError of one line fails the test."""
    message = "nothing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*arguments)
        except (InputError, CommandError) as error:
            message = str(error)
    assert len(message.splitlines()) == 1, message
    assert len(message) < 2100, message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("crafted")


# --- fuzzed: config, checkpoint, weights, data ----------------------------------------------------------------------------


@many(max_examples=400)
@given(bytes_damage((RUN / "config.yaml").read_bytes()) | st.text(max_size=60).map(str.encode) | st.binary(max_size=40))
def test_any_text_as_config(folder, content):
    (folder / "config.yaml").write_bytes(content)
    told(read_config, folder)


@many(max_examples=450)
@given(damage(CONFIG))
def test_any_config_is_read_and_built_or_refused(config):
    def use():
        run_entries(config, "run")
        checked(config.get("model"), MODEL_ENTRIES, "config.yaml, model")
        with bounded(0, "The model"):
            build(config["model"])

    told(use)


@many(max_examples=200)
@given(damage(CONFIG))
def test_any_options_are_looked_at_before_they_are_parsed(config):
    told(check_options, {k: v for k, v in config.items() if k != "pyro_vae"}, "--config")


def made_trainer() -> Trainer:
    x = (torch.arange(80).reshape(20, 4) % 3 == 0).float()
    settings = Settings(2, 10, 1e-3, "constant", 0.0, None, 5, 0, 0.9)
    trainer = Trainer(vae(), settings, ELBO(), "cpu", "eager")
    trainer.prepare(x, x, None, None)
    return trainer


class Checkpoints:
    """A checkpoint, its places and what does not belong there, and a trainer that takes the whole one."""

    def __init__(self, trainer: Trainer, whole: dict, odd: tuple):
        self.trainer, self.whole, self.odd, self.places = trainer, whole, odd, places(whole)

    def damaged(self, at: int, how: str, value: int) -> dict:
        return damaged(self.whole, self.places[at % len(self.places)], how, self.odd[value % len(self.odd)])


@pytest.fixture(scope="module")
def checkpoints():
    torch.manual_seed(0)
    trainer = made_trainer()
    trainer.run(RunLog(None, trainer.pair), False)
    trainer.place = Place(torch.zeros((), dtype=torch.float64), random_states(trainer.device), step=1)
    whole = checkpoint(trainer)
    odd = (*(value for value in ODD if json_can_hold(value)), torch.zeros(0), torch.zeros(3, 3), torch.zeros(2).long())
    return Checkpoints(made_trainer(), whole, odd)


@many(max_examples=350)
@given(st.integers(0, 10**6), st.sampled_from(WAYS), st.integers(0, 10**6))
def test_any_checkpoint_is_restored_or_refused(folder, checkpoints, at, how, value):
    path = folder / "checkpoint.safetensors"
    write_tensors(path, checkpoints.damaged(at, how, value))
    before = torch.get_rng_state(), random.getstate()
    told(lambda: restore(checkpoints.trainer, read_checkpoint(path)))
    torch.set_rng_state(before[0])
    random.setstate(before[1])


def json_can_hold(value) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


@many(max_examples=200)
@given(bytes_damage((RUN / "checkpoint.safetensors").read_bytes()))
def test_any_bytes_as_checkpoint(folder, content):
    (folder / "bytes.safetensors").write_bytes(content)
    told(read_checkpoint, folder / "bytes.safetensors")


@many(max_examples=300)
@given(bytes_damage((RUN / "model.safetensors").read_bytes()) | st.binary(max_size=60))
def test_any_bytes_as_weights(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    told(read_weights, folder / "model.safetensors", {"decoder.layers.0.weight": torch.Size([4, 2])})


def valid_files() -> dict[str, bytes]:
    """A small file of each kind that is read."""
    x, y = np.arange(24, dtype="float32").reshape(6, 4), np.arange(6) % 2
    made = {}
    for name, write in (
        (".npy", lambda file: np.save(file, x)),
        (".npz", lambda file: np.savez_compressed(file, x=x, y=y)),
        (".pt", lambda file: torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, file)),
    ):
        file = io.BytesIO()
        write(file)
        made[name] = file.getvalue()
    made[".csv"] = b"a,b,label\n1,2,0\n3,4.5,1\n5,6,0\n7,8,1\n9,1,1\n2,2,0\n"
    try:
        import pyarrow
        import pyarrow.parquet

        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"a": x[:, 0], "b": x[:, 1], "y": y}), file)
        made[".parquet"] = file.getvalue()
    except ImportError:
        pass
    return made


FILES = valid_files()


@many(max_examples=400)
@given(st.sampled_from(sorted(FILES)).flatmap(lambda end: st.tuples(st.just(end), bytes_damage(FILES[end]))))
def test_any_bytes_as_data(folder, drawn):
    end, content = drawn
    path = folder / f"data{end}"
    path.write_bytes(content)
    told(data.load, path)


# --- what is no regular file, too large, or claims too much ---------------------------------------------------------------

SPECIAL = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path.name),
    "nothing": lambda path: path.symlink_to("nowhere"),
    "made up": lambda path: path.symlink_to("/proc/self/pagemap"),  # a regular file of no bytes that does not end
    "sparse": lambda path: (path.touch(), os.truncate(path, 2**42)),
}


@pytest.fixture
def run(tmp_path):
    """A copy of a saved run."""
    return shutil.copytree(RUN, tmp_path / "run")


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "checkpoint.safetensors"])
def test_special_files_in_a_run_folder_are_told(run, name, kind):
    (run / name).unlink()
    SPECIAL[kind](run / name)
    read = {"config.yaml": lambda: read_config(run), "model.safetensors": lambda: load(run)}
    with pytest.raises(InputError, match=f"{name} (can't be read|has no entry)"):
        read.get(name, lambda: read_checkpoint(run / name))()


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("end", sorted(FILES))
def test_special_files_as_data_are_told(tmp_path, end, kind):
    path = tmp_path / f"x{end}"
    SPECIAL[kind](path)
    with pytest.raises(InputError, match=r"can't be read|no file or folder|holds no pictures|is empty"):
        data.load(path)


def test_a_pipe_among_pictures_is_told(tmp_path):
    from PIL import Image

    for i in range(12):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png can't be read.*named pipe"):
        data.load(tmp_path)


def test_a_folder_of_other_files_is_not_walked_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_vae.data.pictures.MOST_OTHERS", 20)
    for folder in range(5):
        (tmp_path / f"d{folder}").mkdir()
        for i in range(10):
            (tmp_path / f"d{folder}" / f"{i}.txt").touch()
    with pytest.raises(InputError, match=r"holds 0 pictures among the first 30 files"):
        data.load(tmp_path)


def test_files_that_claim_more_than_they_hold_are_told(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**30, 4)})
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros(80 * MIB, dtype="uint8"))
    torch.save(torch.zeros(1).expand(2**40), tmp_path / "c.pt")
    for name in ("a.npy", "b.npz", "c.pt"):
        with pytest.raises(InputError, match=f"{name} can't be read"):
            data.load(tmp_path / name)
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.parquet.ParquetWriter(tmp_path / "d.parquet", pyarrow.schema([("a", pyarrow.int8())])) as writer:
        for _ in range(10):
            writer.write_table(pyarrow.table({"a": np.zeros(MIB, dtype="int8")}))
    with pytest.raises(InputError, match=r"d\.parquet can't be read: it has .* KiB, but says that it holds 80.0 MiB"):
        data.load(tmp_path / "d.parquet")


def test_limits_are_said(tmp_path):
    (tmp_path / "t").write_text("x" * 100)
    assert read_text(tmp_path / "t", 100) == "x" * 100
    with pytest.raises(InputError, match="it has 100 bytes, above 99 bytes"):
        regular_file(tmp_path / "t", 99)
    (tmp_path / "config.yaml").write_text("a: " + "x" * 200_000)
    with pytest.raises(InputError, match=r"195.3 KiB, above 128.0 KiB"):
        read_config(tmp_path)
    with pytest.raises(InputError, match="null byte"):
        regular_file("a\0b")
    with pytest.raises(InputError, match="File name too long"):
        regular_file("x" * 300)
    (tmp_path / "t").write_text("[" * 100_000)
    with pytest.raises(InputError, match="is not JSON"):
        read_json(tmp_path / "t")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than 20,000 values"),
        (LAUGHS.replace("[x, x", "{x: 1, <<: {y: x}}\nx: [x, x"), "not YAML|more than 20,000 values"),
        ("a: &a [*a]", "more than 20,000 values|nested"),
        ("a: " + "[" * 5000, "nested more than 64 deep"),
        ("a: " + "{b: " * 100 + "}" * 100, "nested more than 64 deep"),
        ("a: " + "9" * 6000, "not YAML"),
        ("a: 2001-99-99", "not YAML"),
        ('a: !!int ""', "not YAML"),
        ("a: !!python/object/apply:os.system [x]", "not YAML"),
        ("a: 1\n---\nb: 2", "not YAML"),
    ],
)
def test_yaml_that_explodes_is_told_at_once(text, message):
    start = time.perf_counter()
    with pytest.raises(InputError, match=message):
        parse_yaml(text, "config.yaml")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("name", ["latent_dim", "hidden", "components"])
@pytest.mark.parametrize("size", [10**9, 10**15, 10**30])
def test_huge_sizes_are_told_before_memory_is_taken(run, name, size):
    text = (run / "config.yaml").read_text()
    was = {"latent_dim": "latent_dim: 2", "hidden": "hidden:\n        - 4", "components": "components: 3"}[name]
    (run / "config.yaml").write_text(text.replace(was, f"{was[:-1]}{size}"))
    with pytest.raises(InputError, match=r"memory as the config describes it|can't be made|weights do not fit"):
        load(run)


def test_later_formats_are_refused(run):
    (run / "config.yaml").write_text("format: 7\n" + (run / "config.yaml").read_text())
    with pytest.raises(InputError, match="format 7, written by a later pyro_vae"):
        load(run)
    tree = read_tensors(run / "checkpoint.safetensors")
    write_tensors(run / "checkpoint.safetensors", {**tree, "format": 7})
    with pytest.raises(InputError, match="format 7, written by a later pyro_vae"):
        read_checkpoint(run / "checkpoint.safetensors")


def test_files_say_their_format(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_vae.report.figures", lambda *arguments: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    save(vae(), tmp_path)
    assert read_config(tmp_path)["format"] == 1
    fit(vae(), torch.ones(4, 4), epochs=1, out=tmp_path / "run", progress=False, compile="eager")
    assert read_tensors(tmp_path / "run" / "checkpoint.safetensors")["format"] == 1


# --- nothing foreign runs -------------------------------------------------------------------------------------------------

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
EVIL = "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n"


@pytest.mark.parametrize(
    "path",
    [
        "pyro_vae.__main__.main",
        "pyro_vae.cli.main",
        "pyro_vae.cli.train.train",
        "pyro_vae.runs.saving.load",
        "pyro_vae.svi.SVI",
    ],
)
def test_only_components_can_be_named_and_nothing_else_is_imported(run, path, capsys):
    before = set(sys.modules) - {"pyro_vae.__main__"}
    sys.modules.pop("pyro_vae.__main__", None)
    text = (run / "config.yaml").read_text().replace("pyro_vae.models.vae.VAE", path)
    (run / "config.yaml").write_text(text)
    with pytest.raises(InputError, match="neither a pair, nor a component, nor an objective"):
        load(run)
    assert main(["train", "--config", str(run / "config.yaml")]) == 2
    assert "pyro_vae.__main__" not in sys.modules
    assert not {name for name in set(sys.modules) - before if name.startswith("pyro_vae.cli.sample")}
    assert "usage" not in capsys.readouterr().out


def test_importing_the_main_module_does_nothing():
    done = subprocess.run(
        [sys.executable, "-c", "import pyro_vae.__main__; print('on')"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout) == (0, "on\n")


@pytest.mark.parametrize(
    "options",
    [
        {"model": {"class_path": "evil.VAE"}},
        {"model": {"class_path": "VAE", "init_args": {"latent_dim": 2, "prior": {"class_path": "evil.Prior"}}}},
        {"model": {"class_path": "VAE", "init_args": {"latent_dim": 2, "prior": "evil.Prior"}}},
        {"objective": "evil.ELBO"},
        {"fit": {"schedule": "evil.schedule"}},
        {"fit": {"schedule": {"class_path": "evil.Schedule"}}},
        {"fit": {"schedule": "os.getcwd"}},
        {"model": "evil.yaml"},
        {"fit": "evil.yaml"},
        {"allow": ["evil"], "model": "evil.VAE"},
    ],
)
@pytest.mark.parametrize("command", ["train", "grid"])
def test_a_file_of_options_has_no_foreign_code_imported(tmp_path, monkeypatch, capsys, options, command):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("evil.yaml")
    Path("evil.py").write_text(EVIL)
    Path("options.yaml").write_text(yaml.safe_dump(options))
    path = list(sys.path)
    assert main([command, *(["--config"] if command == "train" else []), "options.yaml"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not Path("evil.ran").exists()
    assert "evil" not in sys.modules
    assert sys.path == path


def test_the_users_modules_come_last_and_only_when_named(tmp_path, monkeypatch):
    """A user's module is found in the current folder; one that is named as a library's does not stand in for it."""
    monkeypatch.chdir(tmp_path)
    for name in ("evil", "yaml", "numpy", "sklearn", "matplotlib"):
        Path(f"{name}.py").write_text(EVIL)
    Path("mine_for_reading.py").write_text(
        "from pyro_vae.priors import StandardNormal\n\nclass Mine(StandardNormal):\n    '''A prior of mine.'''\n"
    )
    small = ["--quiet", "--samples", "0", "--model.latent_dim", "2", "--epochs", "1", "--fit.compile", "eager"]
    monkeypatch.setattr("pyro_vae.report.figures", lambda *arguments: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", *small, "--model.prior", "mine_for_reading.Mine", "--out", "run"]) == 0
    assert main(["sample", "run", "-n", "2", "--out", "s.npy"]) == 2
    assert main(["sample", "run", "-n", "2", "--out", "s.npy", "--allow", "mine_for_reading"]) == 0
    config = ["train", "--config", "run/config.yaml", "--quiet", "--samples", "0", "--out", "again"]
    assert main(config) == 2
    assert main([*config, "--allow", "mine_for_reading"]) == 0
    assert str(tmp_path) not in sys.path
    assert not list(tmp_path.glob("*.ran"))
    del sys.modules["mine_for_reading"]


@pytest.mark.slow
def test_commands_inside_a_downloaded_folder_run_nothing_of_it(run):
    for name in ("yaml", "torch", "pyro", "numpy", "safetensors", "jsonargparse"):
        (run / f"{name}.py").write_text(EVIL)
    command = [sys.executable, "-m", "pyro_vae", "sample", ".", "-n", "2", "--out", "s.npy"]
    done = subprocess.run(command, cwd=run, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(run.glob("*.ran"))


# --- odd words and values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--seed", "12345678901234567890"],
        ["train", "--data", "a\0b"],
        ["train", "--out", "a\0b"],
        ["train", "--out", "x" * 300],
        ["train", "--out", "/dev/null/x"],
        ["train", "--config_text", "a: 1"],
        ["train", "--data", "x" * 5000],
        ["train", "--fit.schedule", "os.getcwd"],
        ["train", "--fit", "/dev/zero"],
        ["sample", str(RUN), "--seed", "12345678901234567890"],
        ["evaluate", "x" * 5000],
    ],
)
def test_odd_words_get_a_line_and_status_two(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_run_without_what_scoring_needs_is_told(run, capsys):
    text = (run / "config.yaml").read_text()
    for entry in ("seed: 0\n", "binarize: dynamic\n", "pixels: unit\n"):
        (run / "config.yaml").write_text(text.replace(entry, "", 1))
        assert main(["evaluate", str(run)]) == 2
        assert f"has no entry '{entry.partition(':')[0]}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup": "0.1"}, "warmup='0.1'"),
        ({"ema": "x"}, "ema='x'"),
        ({"objective": "ELBO"}, "objective is a str"),
        ({"objective": ELBO}, r"objective=ELBO is a class; .*ELBO\(\)"),
        ({"config": {"a": object()}}, "config can't be written"),
        ({"config": 3}, "config=3"),
        ({"out": 3}, "out=3"),
        ({"out": ""}, "out=''"),
        ({"validation": torch.eye(4).to_sparse()}, "sparse_coo.*to_dense"),
    ],
)
def test_odd_arguments_of_fit_are_told(arguments, message):
    with pytest.raises(InputError, match=message):
        fit(vae(), torch.ones(8, 4), epochs=1, progress=False, **arguments)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.eye(4).to_sparse(), "to_dense"),
        (torch.empty(4, 4, device="meta"), "meta device"),
        (torch.ones(4, 4, requires_grad=True), "detach"),
        (torch.ones(4, 4, requires_grad=True) * 2, "detach"),
    ],
)
def test_tensors_that_are_no_data_are_told(x, message):
    with pytest.raises(InputError, match=message):
        data.as_examples(x)
    with pytest.raises(InputError, match="wanted: a dense"):
        data.Examples(x)


def test_rows_of_other_lengths_are_told(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(InputError, match="line 3: there are 1 cells, but 2 columns"):
        data.load(tmp_path / "a.csv")


def test_a_grid_has_at_most_ten_thousand_runs(tmp_path, capsys):
    (tmp_path / "g.yaml").write_text(yaml.safe_dump({"seed": list(range(200)), "epochs": list(range(1, 200))}))
    assert main(["grid", str(tmp_path / "g.yaml")]) == 2
    assert "39,800 combinations" in capsys.readouterr().err


def test_the_documented_schemas_are_those_that_are_checked():
    text = (Path(__file__).parents[1] / "docs" / "running.md").read_text()
    _, config, checkpoints = text.split("### Entries of ")
    for part, schema in ((config, CONFIG_ENTRIES), (checkpoints, CHECKPOINT_ENTRIES)):
        rows = {
            name: rest.removesuffix("; may be missing") for name, rest in re.findall(r"\| `(\w+)` \| (.*) \|", part)
        }
        assert rows == {name: entry.wanted for name, entry in schema.items()}
