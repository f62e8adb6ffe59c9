"""Scores of codes that are the factors, a rotation of them, or noise; and importances by hand."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import entropy

from pyro_vae import InputError, Pair, disentanglement
from pyro_vae.inference.disentanglement import _dci, _modularity


@pytest.fixture(scope="module")
def factors() -> torch.Tensor:
    return torch.rand(600, 2, generator=torch.Generator().manual_seed(0)).double()


def test_codes_that_are_the_factors_score_one(factors):
    scores = disentanglement(None, factors[:, [1, 0]] * torch.tensor([2.0, -3.0]).double(), factors)
    assert min(scores.sap, scores.modularity, scores.disentanglement, scores.completeness) > 0.98
    assert min(scores.informativeness, *scores.probes.values()) > 0.99
    assert scores.mig > 0.85  # of bins of equal width, less their bias
    assert scores.importance.argmax(0).tolist() == [1, 0]


def test_classes_are_scored_by_accuracy():
    classes = torch.randint(0, 4, (600, 2), generator=torch.Generator().manual_seed(0))
    scores = disentanglement(None, classes.double(), {"a": classes[:, 0], "b": classes[:, 1]})
    assert scores.probes == {"a": 1.0, "b": 1.0}
    assert scores.mig > 0.98
    assert scores.sap == pytest.approx(1.0, abs=0.1)
    assert scores.chance["a"] < 0.4


def test_a_rotation_mixes_factors_but_loses_none(factors):
    rotation = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double() / math.sqrt(2)
    scores = disentanglement(None, factors @ rotation, factors)
    assert max(scores.mig, scores.sap, scores.disentanglement, scores.completeness) < 0.1
    assert min(scores.probes.values()) > 0.99


def test_noise_tells_nothing(factors):
    noise = torch.randn(600, 3, generator=torch.Generator().manual_seed(1))
    scores = disentanglement(None, noise, {"class": (factors[:, 0] > 0.5).long(), "quantity": factors[:, 1]})
    assert (scores.mutual_information == 0).all()
    assert scores.mig == 0
    assert abs(scores.probes["class"] - scores.chance["class"]) < 4 * scores.probe_stderr["class"]
    assert scores.probes["quantity"] < 0.1


def test_mutual_information_is_the_closed_form():
    """Two classes told right with 3 in 4: log 2 − H(1/4) nats, within 5 standard errors of 4,000 data."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (4000,), generator=generator)
    seen = torch.where(torch.rand(4000, generator=generator) < 0.75, label, 1 - label)
    codes = torch.stack([seen.double(), torch.randn(4000, generator=generator).double()], 1)
    scores = disentanglement(None, codes, label)
    exact = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    spread = math.sqrt(0.75 * 0.25) * math.log(3)  # of log p(label | code)
    assert abs(scores.mutual_information[0, 0].item() - exact) < 5 * spread / math.sqrt(4000)
    assert scores.mig == pytest.approx(exact / math.log(2), abs=0.06)
    assert math.isnan(scores.modularity)


def test_formulas_by_hand():
    importance = torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, 0.5]]).double()
    disentangled, complete = _dci(importance)
    assert disentangled == pytest.approx(1.0)
    assert complete == pytest.approx((1 + 1 - math.log(2) / math.log(3)) / 2)
    importance = torch.tensor([[0.8, 0.1], [0.2, 0.5], [0.0, 0.4]]).double()
    disentangled, complete = _dci(importance)
    by_rows = [1 - entropy(row, base=2) for row in importance.numpy()]
    assert disentangled == pytest.approx(0.45 * by_rows[0] + 0.35 * by_rows[1] + 0.2 * by_rows[2])
    assert complete == pytest.approx(1 - entropy(importance.numpy(), base=3).mean())
    information = torch.tensor([[1.0, 0.5], [0.0, 2.0], [0.0, 0.0]]).double()
    assert _modularity(information) == pytest.approx((1 - 0.25 + 1) / 2)


def test_posterior_means_of_a_pair_are_the_codes(factors):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 5.0).to_event(1))

    of_pair = disentanglement(Pair(model, guide), factors, factors)
    of_codes = disentanglement(None, factors, factors)
    assert of_pair.probes == of_codes.probes
    assert str(of_pair) == str(of_codes)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (torch.zeros(600).long(), "one value"),
        (torch.rand(5), r"\(600,\) is wanted"),
        (torch.full((600,), math.nan), "not finite"),
    ],
)
def test_bad_factors_are_named(factors, factor, words):
    with pytest.raises(InputError, match=words):
        disentanglement(None, factors, {"f": factor})
    with pytest.raises(InputError, match="at least 40"):
        disentanglement(None, factors[:20], factors[:20])
    with pytest.raises(InputError, match="codes"):
        disentanglement(None, factors[0], factors)
