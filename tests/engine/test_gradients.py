"""(loss, gradients) of an objective on a pair: taken out of `.grad`, which is left as it was."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ReweightedWakeSleep, Trace_ELBO

from pyro_vae.engine.step.gradients import Gradients, clear, give
from tests.engine.test_svi import X as BATCH
from tests.engine.test_svi import make_vae

X = torch.randn(6, generator=torch.Generator().manual_seed(0))


def model(x):
    loc = pyro.param("loc", torch.tensor(0.5))
    pyro.param("unused", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def guide(x):
    pass


def elbo():
    return Gradients(lambda: (model, guide, Trace_ELBO().loss_and_grads))


def test_they_are_those_of_the_objective():
    gradients = elbo()
    loss, given = gradients(X)
    assert given.keys() == {"loc"}
    assert list(gradients.params) == ["loc", "unused"]
    torch.testing.assert_close(given["loc"], -(X - 0.5).sum())
    assert float(loss) == pytest.approx(-dist.Normal(0.5, 1.0).log_prob(X).sum().item(), rel=1e-6)


def test_what_is_in_grad_is_put_back():
    gradients = elbo()
    gradients(X)
    loc, unused = gradients.params["loc"], gradients.params["unused"]
    assert loc.grad is unused.grad is None
    loc.grad = kept = torch.tensor(3.0)
    _, given = gradients(X)
    assert loc.grad is kept
    assert kept == 3.0
    torch.testing.assert_close(given["loc"], -(X - 0.5).sum())
    give(gradients.params, given)
    torch.testing.assert_close(loc.grad, 3.0 - (X - 0.5).sum())
    clear([loc, unused])
    assert loc.grad is None


def test_they_are_divided_by_a_size():
    whole = elbo()(X)
    loss, given = Gradients(lambda: (model, guide, Trace_ELBO().loss_and_grads), size=len)(X)
    assert float(loss) == pytest.approx(float(whole[0]) / 6)
    torch.testing.assert_close(given["loc"], whole[1]["loc"] / 6)


def test_a_call_that_fails_behind_its_backward_pass_leaves_what_it_leaves_under_pyro():
    def failing(model, guide, x):
        Trace_ELBO().loss_and_grads(model, guide, x)
        raise ValueError("no")

    def left(loss_and_grads):
        for tensor in pyro.get_param_store()._params.values():
            tensor.grad = None
        torch.manual_seed(0)
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                loss_and_grads(X)
        return {k: None if t.grad is None else t.grad.clone() for k, t in pyro.get_param_store()._params.items()}

    pyros = left(lambda x: failing(model, guide, x))
    torch.testing.assert_close(left(Gradients(lambda: (model, guide, failing))), pyros)


def test_one_tensor_of_two_names_has_one_gradient():
    shared = torch.tensor(0.5, requires_grad=True)

    def twice(x):
        loc = pyro.param("a", shared) + pyro.param("b", shared)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    gradients = Gradients(lambda: (twice, guide, Trace_ELBO().loss_and_grads))
    _, given = gradients(X)
    assert list(gradients.params) == ["a", "b"]
    assert gradients.params["a"] is gradients.params["b"]
    assert given.keys() == {"a"}
    torch.testing.assert_close(given["a"], -2 * (X - 1.0).sum())


def test_objectives_of_several_losses_keep_them():
    programs, objective = make_vae(), ReweightedWakeSleep(num_particles=2, max_plate_nesting=1)
    gradients = Gradients(lambda: (*programs, objective.loss_and_grads))
    loss, given = gradients(BATCH)
    assert isinstance(loss, tuple)
    assert len(loss) == 2
    assert given.keys() == gradients.params.keys()
    by_size = Gradients(lambda: (*programs, objective.loss_and_grads), size=len)(BATCH)[0]
    assert not isinstance(by_size, tuple)  # the model's, which is its bound
