"""Imputation against closed forms: conditionals of a Gaussian, Rubin's rules, quadrature; rows out as they came in."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pyro_vae import VAE, Pair, data, fit, generate, impute, likelihoods, load, log_likelihood, networks, save
from pyro_vae.data import Table
from pyro_vae.errors import InputError
from pyro_vae.inference.cells import quantiles
from tests.test_tables import mixed

LOC, SCALE = torch.tensor([40.0, 3.0, -7.0, 100.0]).double(), torch.tensor([13.0, 0.5, 2.0, 30.0]).double()
NOISE = 0.5


def factor_analysis() -> tuple[VAE, torch.Tensor, torch.Tensor, pd.DataFrame]:
    """A table's VAE whose decoder is linear, the mean and covariance of its rows in the table's units, and such rows."""
    columns = [
        likelihoods.Standardized(likelihoods.Normal(NOISE), m, s)
        for m, s in zip(LOC.tolist(), SCALE.tolist(), strict=True)
    ]
    schema = [{"name": name, "kind": "real", "dtype": "float64"} for name in "abcd"]
    encoder = networks.MLP([8])
    vae = VAE(
        (4,), 2, likelihood=likelihoods.Columns(columns, schema), encoder=encoder, decoder=networks.MLP([])
    ).double()
    layer = vae.decoder.layers[-1]
    weight, bias = layer.weight.detach(), layer.bias.detach()
    guide = encoder.layers[-1]  # draws from a normal a little wider than the prior, so that weights are bounded
    guide.weight.detach().zero_()
    guide.bias.detach().copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    weight.copy_(torch.tensor([[1.0, 0.3], [-0.8, 0.5], [0.4, -0.9], [0.7, 0.7]]))
    mean = LOC + SCALE * bias
    cov = SCALE[:, None] * (weight @ weight.T + NOISE**2 * torch.eye(4).double()) * SCALE
    g = torch.Generator().manual_seed(3)
    x = mean + torch.randn(60, 4, generator=g).double() @ torch.linalg.cholesky(cov).T
    x[torch.rand(60, 4, generator=g) < 0.4] = math.nan
    x[0] = math.nan  # nothing is known of this row
    return vae, mean, cov, pd.DataFrame(x.numpy(), columns=list("abcd"), index=range(100, 160))


def conditional(x: torch.Tensor, mean: torch.Tensor, cov: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean and standard deviation of the missing entries of a row, and log p of the others."""
    gone = x.isnan()
    there = ~gone
    if not there.any():
        return mean, cov.diagonal().sqrt(), 0.0
    gain = cov[gone][:, there] @ torch.linalg.inv(cov[there][:, there])
    centre = mean[gone] + gain @ (x[there] - mean[there])
    spread = (cov[gone][:, gone] - gain @ cov[there][:, gone]).diagonal().sqrt()
    marginal = torch.distributions.MultivariateNormal(mean[there], cov[there][:, there])
    return centre, spread, marginal.log_prob(x[there]).item()


def test_means_and_intervals_are_those_of_the_conditional_gaussian():
    """Each mean within 5 Monte Carlo errors, each interval's end within 6 of its own; false alarm below 1e-3."""
    vae, mean, cov, frame = factor_analysis()
    filled = impute(vae, frame, num_samples=4000)
    low, high = filled.interval(0.9)
    assert filled.khat.max() < 0.7
    for n, x in enumerate(torch.tensor(frame.to_numpy())):
        gone = x.isnan().numpy()
        if not gone.any():
            continue
        centre, spread, _ = conditional(x, mean, cov)
        error = spread.numpy() / math.sqrt(filled.ess.iloc[n])
        assert (np.abs(filled.iloc[n].to_numpy()[gone] - centre.numpy()) < 5 * error).all()
        # a quantile's standard error is sqrt(p (1 − p) / ess) over the density there, 2.1 standard deviations / sqrt(ess)
        for end, z in ((low, -1.6449), (high, 1.6449)):
            assert (np.abs(end.iloc[n].to_numpy()[gone] - (centre + z * spread).numpy()) < 6 * 2.2 * error).all()


def test_the_score_of_the_observed_cells_is_the_closed_form_in_the_tables_units():
    vae, mean, cov, frame = factor_analysis()
    score = log_likelihood(vae, frame, num_samples=4000)
    exact = torch.tensor([conditional(x, mean, cov)[2] for x in torch.tensor(frame.to_numpy())]).double()
    assert ((score.values - exact).abs() < 5 * score.mc_stderr + 1e-9).all()


def test_a_row_with_no_cell_imputes_to_the_prior():
    vae, mean, cov, frame = factor_analysis()
    one = impute(vae, frame.iloc[:1], num_samples=5000)
    error = cov.diagonal().sqrt().numpy() / math.sqrt(one.ess.iloc[0])
    assert (np.abs(one.iloc[0].to_numpy() - mean.numpy()) < 5 * error).all()
    draws = one.imputation.draws(2000)[:, 0]
    assert ((draws.std(0) / cov.diagonal().sqrt()).log().abs() < 5 * 2 / math.sqrt(2 * 2000)).all()


def test_conditional_scores_and_draws_are_those_of_the_conditional_gaussian():
    vae, mean, cov, frame = factor_analysis()
    rows = frame[["a", "b", "c"]].dropna().join(frame[["d"]])
    score = log_likelihood(vae, rows, 4000, of=["a"], given=["b", "c"])
    inner = torch.linalg.inv(cov[1:3, 1:3])
    x = torch.tensor(rows.to_numpy())
    centre = mean[0] + (x[:, 1:3] - mean[1:3]) @ inner @ cov[1:3, 0]
    spread = (cov[0, 0] - cov[0, 1:3] @ inner @ cov[1:3, 0]).sqrt()
    exact = dist.Normal(centre, spread).log_prob(x[:, 0])
    assert ((score.values - exact).abs() < 5 * score.mc_stderr).all()

    given = {"b": 3.6, "c": -9.0}
    drawn = generate(vae, 3000, given=given, seed=1)
    assert (drawn["b"] == 3.6).all()
    centre = mean[0] + (torch.tensor([3.6, -9.0]).double() - mean[1:3]) @ inner @ cov[1:3, 0]
    effective = 1 / (1 / 3000 + 1 / drawn.attrs["ess"])
    assert abs(drawn["a"].mean() - centre.item()) < 5 * spread.item() / math.sqrt(effective)
    assert abs(math.log(drawn["a"].std() / spread.item())) < 5 / math.sqrt(2 * effective)


class Known:
    """x ~ N(μ, W Wᵀ + s²) with one factor, missing cells masked by hand; each datum brings its μ."""

    weight, noise = torch.tensor([1.0, 0.9, -0.7]), torch.tensor([0.7, 0.8, 0.6])

    def model(self, x, mu):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            there = ~x.isnan()
            fn = dist.Normal(mu + z.unsqueeze(-1) * self.weight, self.noise).mask(there).to_event(1)
            pyro.sample("x", fn, obs=x.nan_to_num(0.0))

    def guide(self, x, mu):
        there = (~x.isnan()).float()
        precision = 1 + (there * self.weight**2 / self.noise**2).sum(-1)
        pull = (there * self.weight * (x.nan_to_num(0.0) - mu * there) / self.noise**2).sum(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pull / precision, precision.rsqrt()))


def test_pooled_intervals_cover_as_often_as_they_say():
    """Rubin's rules on 400 data sets of 80 rows, cells missing at random by another column: 93 to 97 % at nominal 95 %.

    μ is fitted to each data set (one step of EM's fixed point in closed form). By chance alone, a coverage of 95 % would be
    read outside these bounds once in 15 seeds; the seed is fixed.
    """
    sets, size, draws = 400, 80, 20
    pair, g = Known(), torch.Generator().manual_seed(11)
    cov = pair.weight[:, None] * pair.weight + torch.diag(pair.noise**2)
    x = torch.randn(sets, size, 3, generator=g) @ torch.linalg.cholesky(cov).T
    gone = torch.rand(sets, size, generator=g) < 0.25 + 0.2 * (x[..., 1] > 0)
    # maximum likelihood of μ_1 with the covariance known: the regression on the columns that are always seen
    slope = torch.linalg.solve(cov[1:, 1:], cov[1:, 0])
    others = x[..., 1:].mean(1, keepdim=True)
    rest = x[..., 0] - (x[..., 1:] - others) @ slope
    first = (rest * ~gone).sum(1) / (~gone).sum(1)
    mu = torch.cat([first[:, None, None], others], -1).expand(sets, size, 3).reshape(-1, 3)
    holed = x.clone()
    holed[..., 0] = holed[..., 0].masked_fill(gone, math.nan)
    completed = impute(Pair(pair.model, pair.guide), (holed.reshape(-1, 3), mu), num_samples=100).draws(draws)
    columns = completed[..., 0].reshape(draws, sets, size).double()
    estimates, within = columns.mean(-1), columns.var(-1).mean(0) / size
    between = estimates.var(0)
    total = within + (1 + 1 / draws) * between
    df = (draws - 1) * (1 + within / ((1 + 1 / draws) * between)) ** 2
    reach = torch.tensor(scipy.stats.t.ppf(0.975, df.numpy())) * total.sqrt()
    covered = (estimates.mean(0).abs() < reach).double().mean().item()
    assert 0.93 <= covered <= 0.97, covered


def test_cells_of_an_image_are_filled_as_quadrature_says():
    """Half of a 3 x 4 picture of bits, one latent: shares of ones within 5 Monte Carlo errors."""
    weight, bias = torch.randn(1, 12).double(), torch.randn(12).double()

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            fn = dist.Bernoulli(logits=(z @ weight + bias).unflatten(-1, (1, 3, 4)))
            pyro.sample("x", fn.mask(~x.isnan()).to_event(3), obs=x.nan_to_num(0.0))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.2).to_event(1))

    x = (torch.rand(5, 1, 3, 4) < 0.5).double()
    x[..., 2:] = math.nan
    result = impute((model, guide), x, num_samples=8000)
    z = torch.linspace(-7, 7, 4001).double()[:, None]
    logits = z @ weight + bias
    left = ~x[0].isnan().flatten()
    scores = dist.Bernoulli(logits=logits[:, None, left]).log_prob(x.flatten(1)[:, left]).sum(-1) - z**2 / 2
    exact = (scores.softmax(0)[..., None] * torch.sigmoid(logits)[:, None, ~left]).sum(0)
    got = result.mean.flatten(1)[:, ~left]
    assert ((got - exact).abs() < 5 * 0.5 / result.ess.sqrt()[:, None]).all()
    assert torch.equal(result.mean.flatten(1)[:, left], x.flatten(1)[:, left])
    draws = result.draws(400)
    assert set(draws.unique().tolist()) <= {0.0, 1.0}
    effective = 1 / (1 / 400 + 1 / result.ess[:, None])
    assert ((draws.mean(0).flatten(1)[:, ~left] - exact).abs() < 5 * 0.5 / effective.sqrt()).all()


def test_weighted_quantiles_are_those_of_repeated_values():
    drawn, times = torch.randn(7, 3).double(), torch.tensor([3, 1, 2, 5, 1, 4, 4])
    weights = (times / times.sum()).double()[:, None].expand(7, 3)
    found = quantiles(drawn, weights, [0.05, 0.5, 0.95])
    for p, value in found.items():
        repeated = drawn.repeat_interleave(times, dim=0).sort(0).values
        assert torch.equal(value, repeated[math.ceil(p * 20 - 1e-9) - 1])


def trained(frame: pd.DataFrame, **options) -> tuple[VAE, Table]:
    pyro.set_rng_seed(0)
    table = Table(frame)
    parts = {"encoder": networks.MLP([8]), "decoder": networks.MLP([8])}
    vae = VAE.for_table(table, latent_dim=2, **parts, **options)
    fit(vae, table, epochs=1, batch_size=20, seed=0, progress=False, compile="eager")
    return vae, table


BY_KIND = {
    "real": "real",
    "positive": "positive",
    "count": "whole",
    "binary": "flag",
    "categorical": "word",
    "ordinal": "grade",
}
BY_KIND["date"] = "day"
COMBINATIONS = [*itertools.combinations(BY_KIND, 1), *itertools.combinations(BY_KIND, 2), tuple(BY_KIND)]


@pytest.mark.parametrize("kinds", COMBINATIONS, ids="-".join)
def test_every_combination_of_kinds_trains_scores_imputes_saves_and_loads(kinds, tmp_path):
    frame = mixed(24)[[BY_KIND[kind] for kind in kinds]]
    vae, table = trained(frame)
    assert tuple(table.kinds.values()) == kinds
    score = log_likelihood(vae, table, 20, compile="eager")
    assert score.values.isfinite().all()
    filled = impute(vae, frame, 20)
    assert filled.dtypes.equals(frame.dtypes)
    assert filled.index.equals(frame.index)
    assert filled.notna().all(axis=None)
    pd.testing.assert_frame_equal(pd.DataFrame(filled).where(frame.notna()), frame.where(frame.notna()))
    drawn = generate(vae, 3, seed=0)
    assert drawn.dtypes.equals(frame.dtypes)
    twin = load(save(vae, tmp_path / "run"))
    assert torch.equal(log_likelihood(twin, table, 20, compile="eager").values, score.values)
    pd.testing.assert_frame_equal(pd.DataFrame(impute(twin, frame, 20)), pd.DataFrame(filled))


def test_rows_without_any_cell_are_filled_by_what_the_columns_were():
    frame = mixed(24)
    vae, _ = trained(frame)
    empty = pd.DataFrame(np.nan, index=[5, 6, 7], columns=list(reversed(frame.columns)))
    filled = impute(vae, empty, 20)
    assert list(filled.columns) == list(empty.columns)
    assert filled.index.equals(empty.index)
    assert filled.notna().all(axis=None)
    assert filled["word"].isin(["red", "green", "blue"]).all()
    assert filled["grade"].dtype == frame["grade"].dtype


@pytest.mark.parametrize(
    "words",
    [
        {"real": "StudentT", "positive": "Gamma", "count": "NegativeBinomial", "ordinal": "Categorical"},
        {"real": "Laplace", "positive": "StudentT", "count": "ZeroInflatedPoisson", "date": "StudentT"},
        {"columns": {"real": likelihoods.StudentT(3.0), "whole": "Poisson"}},
    ],
)
def test_likelihoods_are_swapped_by_word(words):
    vae, table = trained(mixed(24), **words)
    assert log_likelihood(vae, table, 10, compile="eager").values.isfinite().all()
    assert impute(vae, table, 10).notna().all(axis=None)


def test_words_that_are_not_known_are_named():
    table = Table(mixed(24))
    with pytest.raises(InputError, match="real='Student' is not known. Did you mean 'StudentT'"):
        VAE.for_table(table, real="Student")
    with pytest.raises(InputError, match="columns='reel' is not known. Did you mean 'real'"):
        VAE.for_table(table, columns={"reel": "Normal"})


def test_a_captured_step_trains_a_table_as_an_eager_one_does():
    losses = []
    for how in ("eager", "graph"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        table = Table(mixed(60))
        vae = VAE.for_table(table, latent_dim=2, encoder=networks.MLP([8]), decoder=networks.MLP([8]))
        result = fit(vae, table, epochs=3, batch_size=20, seed=0, progress=False, compile=how)
        losses.append([row["loss"] for row in result.history])
        assert result.how == ("eager" if how == "eager" else "captured")
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_permutation_invariant_encoder_reads_the_observed_cells():
    """The posterior does not depend on what stands where a cell is missing, nor on the order of the elements."""
    table = Table(mixed(24))
    vae = VAE.for_table(table, latent_dim=2, encoder=networks.DeepSets([8], [8]), decoder=networks.MLP([8]))
    fit(vae, table, epochs=1, seed=0, progress=False)
    assert impute(vae, table, 20).notna().all(axis=None)


def test_an_encoder_that_is_to_read_holes_is_shown_some():
    """A fifth of the cells of a table without holes, in training alone, anew each time; log p keeps all of them."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(500, 4)), columns=list("abcd"))
    vae = VAE.for_table(frame, latent_dim=2)
    assert vae.likelihood.hide == 0.2
    assert VAE.for_table(frame.mask(frame > 1), latent_dim=2).likelihood.hide == 0
    x = torch.tensor(frame.to_numpy()).float()
    one, two = (vae.train().likelihood.as_input(x) for _ in range(2))
    marks = one[:, 4:]
    assert abs(marks.mean().item() - 0.2) < 5 * 0.4 / math.sqrt(2000)
    assert (one[:, :4][marks == 1] == 0).all()
    assert not torch.equal(one, two)
    assert (vae.eval().likelihood.as_input(x)[:, 4:] == 0).all()
    with pytest.raises(InputError, match="hide=1 must be a share"):
        VAE.for_table(frame, hide=1)


def test_bad_questions_are_refused():
    vae, _, _, frame = factor_analysis()
    for call, message in (
        (lambda: log_likelihood(vae, frame, of=["e"]), "of='e' is not known"),
        (lambda: log_likelihood(vae, frame, of=["a"], given=["a"]), "both name the column 'a'"),
        (lambda: log_likelihood(vae, frame, of="a"), "of='a' must be a list"),
        (lambda: log_likelihood(vae, frame, of=[]), "of= names no column"),
        (lambda: generate(vae, 3, given={"e": 1}), "given='e' is not known"),
        (lambda: generate(vae, 3, given={"a": "x"}), "given: column 'a', row 0: 'x' is not a number"),
        (lambda: impute(vae, frame).interval(0.8), "level=0.8 is not known. Choose one of 0.5, 0.9"),
        (lambda: impute(vae, frame[["a"]]), "there is no column 'b'"),
        (
            lambda: impute(vae, torch.zeros(2, 4).double(), missing=torch.zeros(2, 3).bool()),
            r"missing must be a mask of shape \(2, 4\)",
        ),
        (lambda: generate(VAE((2,), 1), 3, given={"a": 1}), "this pair models none"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_the_five_lines_run_on_a_file(tmp_path):
    lines = ["age,sex,smoker,visit,weight"]
    for i in range(60):
        age, sex, smoker = "" if i % 5 == 0 else 30 + i % 37, "fm"[i % 3 == 0], ["True", "False", ""][i % 3]
        lines.append(f"{age},{sex},{smoker},2024-0{i % 9 + 1}-1{i % 9},{60 + i / 7:.2f}")
    (tmp_path / "patients.csv").write_text("\n".join(lines))
    table = data.Table(tmp_path / "patients.csv")
    vae = VAE.for_table(table, latent_dim=3)
    fit(vae, table, epochs=2, progress=False, seed=0)
    filled = impute(vae, table)
    scores = log_likelihood(vae, table).values
    rows = generate(vae, 1000)
    assert filled.dtypes.equals(table.frame.dtypes)
    assert filled.notna().all(axis=None)
    assert scores.shape == (60,)
    assert rows.shape == (1000, 5)
    assert rows["sex"].isin(["f", "m"]).all()
    assert len(filled.draws(3)) == 3
    fit(vae, str(tmp_path / "patients.csv"), epochs=1, progress=False, seed=0)
