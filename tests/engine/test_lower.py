"""Passes over captured graphs: the same numbers and the same draws."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae.engine import lower as lowering
from pyro_vae.engine.graphs import Operations, aten, is_random
from pyro_vae.engine.lower import lower
from pyro_vae.engine.lower.logs import group_logs
from pyro_vae.engine.lower.noise import split_noise
from pyro_vae.pair import kept_random_state
from tests.engine.graphs import count, graph_of


@pytest.mark.parametrize(
    ("shape", "grouped", "turned"),
    [
        ((5, 784), True, False),
        ((5, 784), True, True),
        ((5, 1, 28, 28), True, False),
        ((2, 5, 22), True, False),
        ((5, 7), False, False),
        ((5, 67), False, True),
    ],
)
def test_bernoullis_summed_with_one_logarithm_for_many_lose_no_more_than_the_rounding_of_a_nat(shape, grouped, turned):
    def log_prob(logits, x):
        logits = logits.t() if turned else logits
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(len(shape) - 1).log_prob(x)

    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(shape, generator=generator) > 0.5).float()
    size = torch.Size(shape[1:]).numel()
    for near in (1.0, 4.0, 16.6, 30.0):  # all certain of x: terms of e^-near, about all of which 1 + e loses at 16.6
        logits = (2 * x - 1) * (near + torch.rand(shape, generator=generator))
        logits = logits.t() if turned else logits
        captured, inputs = graph_of(log_prob, logits, x)
        group_logs(captured.graph.graph)
        assert count(captured, aten.binary_cross_entropy_with_logits.default) == (not grouped)
        wanted = log_prob(logits.double(), x.double())
        assert not grouped or (captured.graph(*inputs)[0] - wanted).abs().max() < size * 2**-24
    logits = 5 * torch.randn(shape[::-1] if turned else shape, generator=generator)
    got, wanted = captured.graph(logits, x)[0], log_prob(logits.double(), x.double())
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=0)


def test_log_probs_that_something_else_reads_are_left_alone():
    def terms(logits, x):
        each = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        return each.sum(-1), each

    captured, _ = graph_of(terms, torch.randn(3, 16), torch.ones(3, 16))
    group_logs(captured.graph.graph)
    assert count(captured, aten.binary_cross_entropy_with_logits.default) == 1


def test_noise_is_drawn_ahead_and_the_same():
    def function(x):
        a = torch.randn(3)
        b = nn.functional.dropout(x + a, 0.5)
        c = torch.bernoulli(torch.sigmoid(b))  # depends on values, and so do all draws after it
        return a, b, c, torch.rand(3)

    captured, inputs = graph_of(function, torch.ones(3))
    torch.manual_seed(0)
    wanted = function(torch.ones(3))
    noise, rest = split_noise(captured.graph.graph)
    assert sum(is_random(node) for node in rest.nodes) == 2
    torch.manual_seed(0)
    got = Operations(rest)(*inputs, *noise(*inputs))
    torch.testing.assert_close(tuple(got), wanted, rtol=0, atol=0)


def test_random_state_is_kept_by_lowering():
    captured, inputs = graph_of(lambda x: x + torch.randn(2), torch.zeros(2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with kept_random_state():
        lower(captured, inputs, "graph")
    assert torch.equal(torch.get_rng_state(), before)


def test_estimates_grow_with_work():
    small, _ = graph_of(lambda x: x @ x, torch.zeros(8, 8))
    large, _ = graph_of(lambda x: x @ x, torch.zeros(512, 512))
    assert lowering.seconds_of(small) < 1e-4 < lowering.seconds_of(large) < 1e-2
