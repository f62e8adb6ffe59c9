"""k-hat against the distribution it estimates and against Pyro's own fit; effective sample size by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pyro.ops.stats import fit_generalized_pareto

from pyro_vae.inference.diagnostics import effective_sample_size, pareto_khat, tail_length


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.5, 0.9, 1.5])
def test_khat_recovers_the_shape_of_a_generalised_pareto(k):
    """Quantiles of GPD(k): the fit's bias at M = 400 is below 0.05, and there is no noise in it."""
    quantiles = (torch.arange(400).double() + 0.5) / 400
    excess = torch.expm1(-k * torch.log1p(-quantiles)) / k
    log_tail = torch.log(torch.cat([torch.zeros(1).double(), excess]) + 3.0)
    estimate = pareto_khat(log_tail[torch.randperm(401), None])[0].item()
    assert estimate == pytest.approx((k * 400 + 5) / 410, abs=0.05)


def test_khat_is_pyros_fit_for_each_datum():
    log_w = torch.randn(101, 6).double() * torch.tensor([0.3, 0.5, 1.0, 2.0, 3.0, 5.0])
    ours = pareto_khat(log_w)
    for n in range(6):
        ordered = (log_w[:, n].sort().values - log_w[:, n].max()).exp()
        k, _ = fit_generalized_pareto(ordered[1:] - ordered[0])
        assert ours[n].item() == pytest.approx(k, abs=1e-6)


def test_khat_of_equal_weights_is_zero_and_of_few_is_unknown():
    assert pareto_khat(torch.zeros(50, 3)).tolist() == [0.0, 0.0, 0.0]
    assert pareto_khat(torch.zeros(5, 2)).isnan().all()


def test_khat_does_not_depend_on_the_weights_scale():
    log_w = 2 * torch.randn(80, 4).double()
    torch.testing.assert_close(pareto_khat(log_w), pareto_khat(log_w - 1234.5))


def test_tail_length_is_that_of_the_paper():
    assert tail_length(100) == 20
    assert tail_length(10_000) == 300


def test_effective_sample_size_by_hand():
    w = torch.tensor([[1.0, 5.0], [1.0, 0.0], [2.0, 0.0]]).double()
    ess = effective_sample_size(w.sum(0).log(), w.square().sum(0).log())
    assert ess.tolist() == pytest.approx([16 / 6, 1.0])
    assert math.isclose(effective_sample_size(torch.tensor(7.0).log(), torch.tensor(7.0).log()).item(), 7, rel_tol=1e-6)
