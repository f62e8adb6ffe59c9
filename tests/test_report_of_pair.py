"""One report, results as tables, HTML and JSON, and the same draws in ArviZ."""

from __future__ import annotations

import json
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import InputError, Pair, elbo_terms, evaluate, guides, log_likelihood, to_arviz
from pyro_vae.inference.evaluation import PARTS
from pyro_vae.inference.results import Bounds, Result, nats
from tests.component_table import vae
from tests.conftest import random_states


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    x = torch.rand(80, 4).round()
    factors = {"first": x[:, 0].long(), "sum": x.sum(1)}
    return evaluate(vae(guide=guides.Planar()), x, 20, factors=factors)


def test_every_part_runs_and_prints(report):
    assert list(report.parts) == [name for name in PARTS if name in report.parts]
    assert report.left_out == {}
    assert set(report.parts) == set(PARTS)
    text = str(report)
    for name in PARTS:
        assert f"\n{name}" in text
        assert getattr(report, name) is report.parts[name]
        assert report.seconds[name] > 0


def test_the_report_saves_as_json_and_shows_as_html(report, tmp_path):
    report.save(tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["parts"]["log_likelihood"]["mean"] == pytest.approx(report.log_likelihood.mean)
    assert len(content["parts"]["log_likelihood"]["values"]) == 80
    assert content["parts"]["calibration"]["num_draws"] == 99
    assert "values" not in report.as_dict(10)["parts"]["log_likelihood"]
    assert report._repr_html_().startswith("<table>")


def test_what_does_not_apply_is_named_with_its_reason():
    """A model with a global latent has a predictive score, and can't be simulated."""

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    parts = ("log_likelihood", "elbo_terms", "calibration", "disentanglement")
    report = evaluate(Pair(model, guide), torch.randn(30), 10, parts=parts)
    assert list(report.parts) == ["log_likelihood", "elbo_terms"]
    assert report.left_out["disentanglement"] == "no factors were given"
    assert "left out: calibration" in str(report)
    with pytest.raises(AttributeError, match="left out: no factors"):
        _ = report.disentanglement


def test_a_part_that_fails_takes_nothing_else_with_it(linear_gaussian, monkeypatch):
    def fails(asked):
        raise RuntimeError("out of order")

    monkeypatch.setitem(PARTS, "calibration", fails)
    report = evaluate(linear_gaussian.exact_pair(), linear_gaussian.data(30), 5, parts=("calibration", "elbo_terms"))
    assert report.left_out == {"calibration": "it failed with RuntimeError: out of order"}
    assert report.elbo_terms.elbo < 0


def test_bad_data_and_unknown_parts_are_refused(linear_gaussian):
    pair, x = linear_gaussian.exact_pair(), linear_gaussian.data(5)
    with pytest.raises(InputError, match="parts='calibratoin' is not known"):
        evaluate(pair, x, parts=["calibratoin"])
    with pytest.raises(InputError, match="finite"):
        evaluate(pair, x * math.nan)


def test_scores_are_results_too(linear_gaussian, tmp_path):
    pair, x = linear_gaussian.exact_pair(), linear_gaussian.data(20)
    for result in (log_likelihood(pair, x, 10), elbo_terms(pair, x)):
        assert isinstance(result, Result)
        assert result._repr_html_().count("<tr>") == len(result.rows())
        result.save(tmp_path / "s.json")
        json.loads((tmp_path / "s.json").read_text())
    assert elbo_terms(pair, x).as_dict()["elbo"] == pytest.approx(elbo_terms(pair, x).elbo)


def test_numbers_are_shown_with_their_errors():
    assert nats(-1.5, 0.25) == "−1.500 ± 0.250"
    assert nats(2.0) == "2.000"
    assert str(Bounds(1.0, 2.0, 0.1, 0.2)) == "1.000 ± 0.100 to 2.000 ± 0.200"
    with pytest.raises(NotImplementedError):
        Result().rows()


# --- ArviZ ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("arviz", reason="ArviZ is not installed: pip install arviz")


def variables(data, group: str):
    """The variables of one group, in either form."""
    return data[group] if hasattr(data, "groups") else data[group].dataset


def test_groups_and_shapes(arviz, linear_gaussian):
    before = random_states()
    data = to_arviz(linear_gaussian.exact_pair(), linear_gaussian.data(7), 30)
    assert before == random_states()
    shapes = {
        "posterior": ("z", (1, 30, 7, 2)),
        "prior": ("z", (1, 30, 7, 2)),
        "log_likelihood": ("x", (1, 30, 7)),
        "posterior_predictive": ("x", (1, 30, 7, 5)),
        "prior_predictive": ("x", (1, 30, 7, 5)),
        "observed_data": ("x", (7, 5)),
        "sample_stats": ("log_weight", (1, 30, 7)),
        "constant_data": ("khat", (7,)),
    }
    for group, (name, shape) in shapes.items():
        values = variables(data, group)[name]
        assert values.shape == shape
        assert "datum" in values.dims


def test_leave_one_out_is_the_sum_of_log_p(arviz, linear_gaussian):
    x = linear_gaussian.data(20)
    data = to_arviz(linear_gaussian.exact_pair(), x, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the k-hat of equal weights
        loo = arviz.loo(data)
    exact = linear_gaussian.marginal().log_prob(x).sum().item()
    assert float(loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd) == pytest.approx(exact, abs=1e-8)


def test_resampled_draws_are_the_posteriors(arviz, linear_gaussian):
    """Mean and spread of z over 400 draws that start from a wrong guide, within 7 standard errors."""
    x = linear_gaussian.data(2)
    data = to_arviz(linear_gaussian.poor_pair(), x, 400)
    draws = torch.tensor(variables(data, "posterior")["z"].values[0])  # (K, N, 2)
    exact = linear_gaussian.posterior(x)
    spread = linear_gaussian.posterior_cov.diagonal().sqrt()
    # Of 4,000 weighted draws, an effective number of more than 1,000: their own error adds to that of 400.
    assert ((draws.mean(0) - exact.mean).abs() < 7 * spread / math.sqrt(400)).all()
    assert ((draws.std(0) / spread - 1).abs() < 7 / math.sqrt(800)).all()
    raw = to_arviz(linear_gaussian.poor_pair(), x, 200, resample=False)
    drawn = torch.tensor(variables(raw, "posterior")["z"].values[0])
    assert (drawn.std(0) / spread > 1.35).all()  # the guide's own


def test_latents_under_inner_plates_keep_their_shapes(arviz):
    from tests.test_calibration import parts_guide, parts_model

    data = to_arviz(Pair(parts_model, parts_guide), torch.randn(6, 2), 5)
    assert variables(data, "posterior")["z"].shape == (1, 5, 6, 3, 2)
    assert variables(data, "posterior")["w"].shape == (1, 5, 6)
    assert variables(data, "prior")["z"].shape == (1, 5, 6, 3, 2)


def test_streams_are_scored_and_the_rest_says_why_not(linear_gaussian):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(linear_gaussian.data(20)), batch_size=5)
    report = evaluate(linear_gaussian.exact_pair(), loader, 5, parts=["elbo_terms", "latent_use", "calibration"])
    assert list(report.parts) == ["elbo_terms"]
    assert "streamed" in report.left_out["latent_use"]
    assert "streamed" in report.left_out["calibration"]
