"""Graphs compiled by Inductor: the same numbers and draws, and compiled once."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from pyro_vae.engine.lower import has_compiler, inductor, lower
from pyro_vae.engine.trace import capture
from pyro_vae.engine.values import CaptureError
from tests.engine.graphs import graph_of


@pytest.mark.slow
def test_what_inductor_has_compiled_is_known_to_later_processes_with_as_many_threads(tmp_path):
    code = """
import torch
from torch._dynamo.utils import counters
from torch._inductor import compile_fx
from pyro_vae.engine.trace import capture
from pyro_vae.engine.lower import lower
inner = compile_fx.compile_fx_inner
def of_known_shapes(graph, examples, **settings):
    assert all(type(length) is int for example in examples for length in example.shape)
    return inner(graph, examples, **settings)
compile_fx.compile_fx_inner = of_known_shapes
captured = capture(lambda x: 3 * x + 1, torch.ones(64))
run = lower(captured, [torch.ones(64)], "inductor")
assert torch.equal(run(*captured.held, torch.ones(64))[0], torch.full((64,), 4.0))
print(counters["inductor"]["fxgraph_cache_hit"])
"""
    places = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "TMPDIR"), str(tmp_path))

    def hits(threads):
        variables = os.environ | places | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, env=variables)
        return int(done.stdout)

    assert hits(1) == 0
    # What the compiler is given to begin with is what generated code includes: else it had compiled others for nothing.
    assert len(list(tmp_path.rglob("*.gch"))) == 1
    assert [hits(1), hits(2), hits(1)] == [1, 0, 1]


@pytest.mark.slow
def test_inductor_gives_what_the_graph_gives_draws_included():
    def function(x):
        a = torch.randn(3, 4)
        b = nn.functional.dropout(x + a, 0.5)
        return torch.bernoulli(torch.sigmoid(b)), torch.rand(3), nn.functional.softplus(b).sum()

    captured, inputs = graph_of(function, torch.ones(3, 4))
    run = lower(captured, inputs, "inductor")
    for seed in range(3):
        torch.manual_seed(seed)
        wanted = captured.graph(*inputs)
        torch.manual_seed(seed)
        torch.testing.assert_close(list(run(*inputs)), list(wanted), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_autograd_sees_what_compiled_code_writes():
    mean = torch.zeros(3)

    def function(x):
        mean.mul_(0.5).add_(x.sum(0))
        return (x * mean).sum(), x @ x.t()

    x = torch.ones(4, 3)
    captured = capture(function, x)
    run = lower(captured, [x], "inductor")
    mean.zero_()
    weight = torch.ones(3, requires_grad=True)
    product = (weight * mean).sum()
    with torch.no_grad():
        total, _ = run(*captured.held, x)
    assert total == 48.0
    assert torch.equal(mean, torch.full((3,), 4.0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.slow
def test_compiled_code_leaves_autocast_outside():
    weight = torch.randn(8, 8)

    def function(x):
        return x @ weight, (x @ weight).sum()

    with torch.autocast("cpu", torch.bfloat16):
        captured, inputs = graph_of(function, torch.randn(4, 8))
        run = lower(captured, inputs[1:], "inductor")
        with torch.no_grad():
            got, wanted = run(*inputs), captured.graph(*inputs)
    assert [t.dtype for t in got] == [t.dtype for t in wanted]
    torch.testing.assert_close(list(got), list(wanted), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("compiler", "set_by_the_user", "trusted"),
    [("true", None, True), ("false", None, False), ("true", False, False), ("true", True, False)],
    ids=["knows the flags", "does not", "user's no", "user's yes"],
)
def test_trial_compilations_are_left_out_where_the_compiler_knows_the_flags(
    compiler, set_by_the_user, trusted, monkeypatch
):
    """`true` and `false` are programs that take any flag and none."""
    from torch._inductor import config, cpp_builder

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: compiler)
    monkeypatch.setattr(inductor, "_vector_instructions", inductor._vector_instructions.__wrapped__)
    with config.patch({"cpp.vec_isa_ok": set_by_the_user}):
        assert inductor._vector_instructions() == ({"cpp.vec_isa_ok": True} if trusted else {})


def test_a_graph_that_inductor_refuses_is_a_capture_error(monkeypatch):
    from torch._inductor import compile_fx

    def fail(*args, **kwargs):
        raise ValueError("no\nmore")

    monkeypatch.setattr(compile_fx, "compile_fx", fail)
    captured, inputs = graph_of(lambda x: x + 1, torch.ones(2))
    with pytest.raises(CaptureError, match="Inductor can't compile the graph: no$"):
        lower(captured, inputs, "inductor")


def test_a_compiler_is_looked_for():
    found = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    assert has_compiler(torch.device("cpu")) == found
    assert not has_compiler(torch.device("meta"))
