"""A declared grid: what multiplies, what is run again, and the table."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import sys

import pytest
import yaml

from pyro_vae import cli
from pyro_vae.cli.combinations import expanded, said
from pyro_vae.errors import InputError
from pyro_vae.training.loop import Trainer

EXPERIMENT = {
    "data": "digits",
    "epochs": 1,
    "samples": 5,
    "seed": [0, 1],
    "fit": {"compile": "eager"},
    "model": {
        "class_path": "VAE",
        "init_args": {
            "latent_dim": 2,
            "prior": [{"class_path": "StandardNormal"}, {"class_path": "Spherical"}],
            "encoder": {"class_path": "MLP", "init_args": {"hidden": [5]}},
            "decoder": {"class_path": "MLP", "init_args": {"hidden": [[5], [6, 6]]}},
        },
    },
}


def test_lists_multiply_but_where_a_list_is_meant():
    made = expanded(EXPERIMENT)
    assert len(made) == 2 * 2 * 2
    assert set(made[0][0]) == {"seed", "model.prior", "model.decoder.hidden"}
    choices, config = made[-1]
    assert choices["model.decoder.hidden"] == [6, 6]
    inner = config["model"]["init_args"]
    assert (config["seed"], inner["prior"]["class_path"], inner["encoder"]["init_args"]["hidden"]) == (
        1,
        "Spherical",
        [5],
    )
    assert expanded({"data": "digits"}) == [({}, {"data": "digits"})]
    with pytest.raises(InputError, match="seed is an empty list"):
        expanded({"seed": []})


def test_components_are_said_in_words():
    assert said({"class_path": "pyro_vae.priors.Mixture", "init_args": {"components": 3}}) == "Mixture(components=3)"
    assert said([6, 6]) == "[6, 6]"


def test_a_grid_is_trained_scored_resumed_and_tabled(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    assert cli.main(["grid", "small.yaml", "--quiet"]) == 0
    printed = capsys.readouterr().out
    # The sphere is no place for a MeanField guide: refused, said so, and left out.
    assert printed.count("left out: prior=Spherical() lives on the unit sphere") == 4
    out = tmp_path / "grids" / "small"
    with (out / "grid.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    scores = [float(row["log_likelihood"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    for row in rows:
        kept = json.loads((out / row["run"] / "test.json").read_text())
        assert float(row["log_likelihood"]) == kept["log_likelihood"]["mean"]
        assert row["seed"] == str(kept["seed"])
    # What is scored is not run again; what is missing is.
    before = {row["run"]: (out / row["run"] / "model.safetensors").stat().st_mtime_ns for row in rows}
    (out / rows[0]["run"] / "test.json").unlink()
    assert cli.main(["grid", "small.yaml", "--quiet"]) == 0
    after = {name: (out / name / "test.json").stat().st_mtime_ns for name in before}
    changed = [name for name in before if after[name] > max(before.values()) and name == rows[0]["run"]]
    assert changed == [rows[0]["run"]]
    with (out / "grid.csv").open() as file:
        assert [float(row["log_likelihood"]) for row in csv.DictReader(file)] == pytest.approx(scores)


def test_a_mistake_in_any_combination_is_met_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "seed": [0, "x"]}))
    assert cli.main(["grid", "bad.yaml"]) == 2
    assert "seed" in capsys.readouterr().err
    assert not (tmp_path / "grids").exists()
    assert cli.main(["grid", "none.yaml"]) == 2


def test_a_grid_killed_before_a_first_checkpoint_leaves_no_run_out(tmp_path, capsys, monkeypatch):
    """It then holds a run's first weights alone, the run's declaration, and what was being written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyro_vae.report.figures", lambda *arguments: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    init = {**EXPERIMENT["model"]["init_args"], "prior": {"class_path": "StandardNormal"}, "decoder": None}
    model = {**EXPERIMENT["model"], "init_args": init}
    (tmp_path / "g.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "seed": [0, 1], "model": model}))
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "run", lambda *arguments: os._exit(9))
        child = multiprocessing.get_context("fork").Process(target=cli.main, args=(["grid", "g.yaml", "--quiet"],))
        child.start()
        child.join()
        assert child.exitcode == 9
    out = tmp_path / "grids" / "g"
    (folder,) = [path for path in out.iterdir() if path.is_dir()]
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "model.safetensors", ".lock"}
    assert folder.with_name(folder.name + ".yaml").exists()
    (folder / ".config.yaml.abc.tmp").write_text("")
    assert cli.main(["grid", "g.yaml", "--quiet"]) == 0
    assert "left out" not in capsys.readouterr().out
    with (out / "grid.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    (folder / "test.json").write_text("{half")  # scored again
    folder.with_name(folder.name + ".yaml").write_text("")
    assert cli.main(["grid", "g.yaml", "--quiet"]) == 0
    assert json.loads((folder / "test.json").read_text())["log_likelihood"]["num_data"] == 360
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == ["grid.csv"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
