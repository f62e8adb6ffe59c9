"""Judging tables: errors and coverage against closed forms, figures of columns, and the commands from file to file."""

from __future__ import annotations

import csv
import math

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from pyro_vae import VAE, generate, networks
from pyro_vae.cli import main
from pyro_vae.data import Table
from pyro_vae.errors import InputError
from pyro_vae.inference.table_report import evaluate_table
from pyro_vae.report import figures, tables
from tests.test_imputation import conditional, factor_analysis
from tests.test_tables import mixed


def test_errors_and_coverage_are_those_of_the_model_that_made_the_rows():
    """Rows of a known Gaussian: log scores of hidden cells by the closed form, coverage within 5 standard errors."""
    vae, mean, cov, _ = factor_analysis()
    g = torch.Generator().manual_seed(5)
    x = mean + torch.randn(400, 4, generator=g).double() @ torch.linalg.cholesky(cov).T
    frame = pd.DataFrame(x.numpy(), columns=list("abcd"))
    report = evaluate_table(vae, frame, hide=0.3, num_samples=400, seed=2)
    hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    scores, errors = torch.zeros(4).double(), torch.zeros(4).double()
    for row, gone in zip(x, hidden, strict=True):
        if gone.any():
            centre, spread, _ = conditional(row.masked_fill(gone, math.nan), mean, cov)
            scores[gone] += torch.distributions.Normal(centre, spread).log_prob(row[gone])
            errors[gone] += (row[gone] - centre) ** 2
    count = hidden.sum(0)
    assert report.columns["hidden"].tolist() == count.tolist()
    np.testing.assert_allclose(report.columns["log_p"], scores / count, atol=0.03)
    np.testing.assert_allclose(report.columns["nrmse"], (errors / count).sqrt() / x.std(0, correction=0), rtol=0.03)
    for level in (0.5, 0.9):
        error = math.sqrt(level * (1 - level) / int(count.sum()))
        covered = (report.columns[f"coverage_{100 * level:.0f}"] * count.numpy()).sum() / int(count.sum())
        assert abs(covered - level) < 5 * error
    assert report.summary()["nrmse"] == pytest.approx(report.columns["nrmse"].mean())
    assert "log p of a row" in str(report)


def small(frame: pd.DataFrame) -> VAE:
    pyro.set_rng_seed(0)
    return VAE.for_table(frame, latent_dim=2, encoder=networks.MLP([8]), decoder=networks.MLP([8]))


def test_each_kind_has_the_figures_that_mean_something_for_it():
    frame = mixed(60)
    report = evaluate_table(small(frame), frame, num_samples=50)
    numbers = report.columns["kind"].isin(["real", "positive", "count", "date"])
    assert report.columns.loc[numbers, ["nrmse", "coverage_90"]].notna().all(axis=None)
    assert report.columns.loc[~numbers, "accuracy"].notna().all()
    assert report.columns["distance"].notna().equals(report.columns["kind"] == "ordinal")
    assert report.columns["log_p"].notna().all()


def test_what_cannot_be_judged_is_refused():
    vae, *_ = factor_analysis()
    with pytest.raises(InputError, match="hide=1.5 must be a share"):
        evaluate_table(vae, pd.DataFrame(np.zeros((3, 4)), columns=list("abcd")), hide=1.5)
    with pytest.raises(InputError, match="wants a pair of a table"):
        evaluate_table(VAE((2,), 1), torch.zeros(3, 2))
    with pytest.raises(InputError, match="No cell is hidden"):
        evaluate_table(vae, pd.DataFrame(np.full((3, 4), np.nan), columns=list("abcd")))


def test_rank_correlations_are_those_of_scipy_over_rows_that_have_both():
    import scipy.stats

    x = torch.randn(50, 3)
    x[:, 1] += x[:, 0] ** 3
    x[torch.rand(50, 3) < 0.2] = math.nan
    found = tables.rank_correlations(x)
    both = ~x[:, :2].isnan().any(1)
    assert found[0, 1].item() == pytest.approx(scipy.stats.spearmanr(x[both, 0], x[both, 1])[0])


def test_a_tables_page_shows_columns_and_correlations(tmp_path):
    frame = mixed(60)[["real", "flag", "word", "day"]]
    vae, table = small(frame), Table(frame)
    history = [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}]
    assert set(figures(vae, history, table, tmp_path)) == {"curves", "marginals", "correlations", "latent"}
    drawn = Table(generate(vae, 40, seed=0), columns=table.columns)
    figure = tables.marginals(table.x, drawn.x, table.columns)
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == list(frame.columns)
    with pytest.raises(InputError, match=r"sampled has shape \(40, 2\)"):
        tables.marginals(table.x, drawn.x[:, :2], table.columns)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of `pyro-vae train --data` on a mixed file, a fifth of its cells missing."""
    folder = tmp_path_factory.mktemp("table")
    frame = mixed(80).drop(columns=["moment"]).assign(target=np.arange(80) % 3)
    frame.to_csv(folder / "rows.csv", index_label="")
    command = ["train", "--data", str(folder / "rows.csv"), "--epochs", "2", "--samples", "20", "--quiet", "--out"]
    assert main([*command, str(folder / "run"), "--kind", "level=count"]) == 0
    return folder, frame


def test_a_file_is_trained_on_without_an_option(run_folder, capsys):
    folder, frame = run_folder
    with (folder / "run" / "columns.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["column"] for row in rows] == list(frame.columns)  # target among them
    assert next(row for row in rows if row["column"] == "level")["kind"] == "count"
    assert (folder / "run" / "figures" / "marginals.png").exists()
    assert main(["evaluate", str(folder / "run"), "--samples", "20", "--quiet"]) == 0
    assert "90 % intervals cover" in capsys.readouterr().out


def test_rows_are_filled_from_file_to_file(run_folder):
    folder, _ = run_folder
    target = folder / "filled.csv"
    command = ["impute", str(folder / "run"), str(folder / "rows.csv"), "--samples", "30", "--draws", "2"]
    assert main([*command, "--out", str(target)]) == 0
    before, after = (pd.read_csv(path, index_col=0) for path in (folder / "rows.csv", target))
    assert list(after.columns) == list(before.columns)
    assert after.index.equals(before.index)
    assert after.notna().all(axis=None)
    there = before.notna()
    pd.testing.assert_frame_equal(after.where(there), before.where(there), check_dtype=False)
    assert all((folder / f"filled-{i}.csv").exists() for i in (1, 2))


@pytest.mark.parametrize("name", ["s.csv", "s.parquet"])
def test_rows_are_drawn_to_a_file(run_folder, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    folder, frame = run_folder
    command = ["sample", str(folder / "run"), "-n", "7", "--out", str(folder / name), "--given", "word=red"]
    assert main(command) == 0
    drawn = pd.read_csv(folder / name) if name.endswith("csv") else pd.read_parquet(folder / name)
    assert drawn.shape == (7, frame.shape[1])
    assert (drawn["word"] == "red").all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["impute", "RUN", "nothing.csv"], "nothing.csv can't be read"),
        (["impute", "RUN", "ROWS", "--out", "x.xlsx"], "tables are written as .csv, .tsv or .parquet"),
        (["sample", "RUN", "--given", "colour=red"], "--given colour=red: wanted is COLUMN=VALUE"),
        (["train", "--data", "ROWS", "--kind", "level"], "--kind level: wanted is COLUMN=KIND"),
        (["train", "--data", "ROWS", "--kind", "level=counts", "--out", "new"], "kinds['level']='counts' is not known"),
        (
            ["train", "--data", "ROWS", "--label", "class_", "--out", "new"],
            "label='class_' is not known. Did you mean 'class'",
        ),
    ],
)
def test_what_a_command_cannot_do_is_one_sentence(run_folder, arguments, message, capsys, monkeypatch, tmp_path):
    folder, _ = run_folder
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(folder / "run"), "ROWS": str(folder / "rows.csv")}
    assert main([places.get(word, word) for word in arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.strip().splitlines()) == 1
