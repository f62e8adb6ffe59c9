"""Loss functions of the user's, and subclasses of Pyro's losses."""

import pyro
from pyro.infer import (
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from pyro.poutine import replay, trace

from tests.engine.zoo.program import (
    alone,
    changes,
    changing,
    decoder_net,
    observe,
    program,
    usual_guide,
    usual_model,
)

quiet = program(visible=False)


def elbo_of(model, guide, *args, beta=1.0):
    """A negative ELBO by hand, with a factor on the KL."""
    guide_trace = trace(guide).get_trace(*args)
    model_trace = trace(replay(model, trace=guide_trace)).get_trace(*args)
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    divergence = guide_trace.nodes["z"]["log_prob_sum"] - model_trace.nodes["z"]["log_prob_sum"]
    return beta * divergence - model_trace.nodes["x"]["log_prob_sum"]


@quiet
def own_loss_function():
    """Nothing; a loss function of the user's."""
    return alone(usual_model(), loss=elbo_of)


@program()
def own_loss_closure():
    """A loss of the user's, whose beta is in a list."""
    beta = [1.0]

    def loss(model, guide, *args):
        return elbo_of(model, guide, *args, beta=beta[0])

    return changing(usual_model(), lambda value: beta.__setitem__(0, value), loss=loss)


@program()
def own_loss_by_nonlocal():
    """A loss of the user's, whose beta is a number in the closure."""
    beta = 1.0

    def loss(model, guide, *args):
        return elbo_of(model, guide, *args, beta=beta)

    def write(value):
        nonlocal beta
        beta = value

    return changing(usual_model(), write, loss=loss)


@program("calls", "history", "losses")
def own_loss_that_anneals():
    """A loss of the user's counts its calls, and anneals."""
    calls, rate = [0], 0.1 if changes() else 0.0

    def loss(model, guide, *args):
        calls[0] += 1
        return elbo_of(model, guide, *args, beta=1.0 + rate * calls[0])

    return alone(usual_model(), loss=loss, kept=lambda: calls)


@program("history", "append", "value", visible=False)
def own_loss_that_records():
    """A loss of the user's appends its terms to a list."""
    history = []

    def loss(model, guide, *args):
        value = elbo_of(model, guide, *args)
        history.append(value.item())
        return value

    return alone(usual_model(), loss=loss, kept=lambda: history)


@program()
def own_loss_object():
    """A callable object is the loss, with an attribute that changes."""

    class Loss:
        beta = 1.0

        def __call__(self, model, guide, *args):
            return elbo_of(model, guide, *args, beta=self.beta)

    loss = Loss()
    return changing(usual_model(), lambda value: setattr(loss, "beta", value), loss=loss)


@quiet
def differentiable_loss_given():
    """`loss=elbo.differentiable_loss`."""
    return alone(usual_model(), loss=Trace_ELBO().differentiable_loss)


@quiet
def own_loss_of_two_parts():
    """A loss of the user's adds a penalty on a network's weights."""
    decoder, elbo = decoder_net(), TraceMeanField_ELBO()

    def loss(model, guide, *args):
        return elbo.differentiable_loss(model, guide, *args) + decoder.weight.square().sum()

    return alone(lambda x: observe(x, decoder), loss=loss)


@quiet
def own_loss_without_gradient():
    """A loss of the user's returns a number without a gradient."""
    return alone(usual_model(), loss=lambda model, guide, *args: elbo_of(model, guide, *args).detach())


@program()
def elbo_subclass_with_beta():
    """A subclass of Trace_ELBO with a factor that changes."""

    class Tempered(Trace_ELBO):
        beta = 1.0

        def _differentiable_loss_particle(self, model_trace, guide_trace):
            loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
            return self.beta * loss, self.beta * surrogate

    elbo = Tempered()
    return changing(usual_model(), lambda value: setattr(elbo, "beta", value), loss=elbo)


@program("calls", "history", visible=False)
def elbo_subclass_that_counts():
    """A subclass of Trace_ELBO counts in its loss_and_grads."""

    class Counting(Trace_ELBO):
        calls = 0

        def loss_and_grads(self, model, guide, *args, **kwargs):
            self.calls += 1
            return super().loss_and_grads(model, guide, *args, **kwargs)

    elbo = Counting()
    return alone(usual_model(), loss=elbo, kept=lambda: elbo.calls)


@program()
def elbo_subclass_own_gradients():
    """A subclass of Trace_ELBO scales the gradients after backward, by a number that changes."""

    class Scaled(Trace_ELBO):
        gain = 1.0

        def loss_and_grads(self, model, guide, *args, **kwargs):
            loss = super().loss_and_grads(model, guide, *args, **kwargs)
            for _, param in pyro.get_param_store().named_parameters():
                if param.grad is not None:
                    param.grad.mul_(self.gain)
            return loss

    elbo = Scaled()
    return changing(
        usual_model(), lambda value: setattr(elbo, "gain", 3 * value), loss=elbo, optim=pyro.optim.SGD({"lr": 3e-3})
    )


@program()
def method_of_elbo_replaced():
    """`elbo.loss_and_grads` is replaced on the instance before SVI is made, and reads a list."""
    elbo, gain = Trace_ELBO(), [1.0]
    original = elbo.loss_and_grads

    def scaled(model, guide, *args, **kwargs):
        return gain[0] * original(model, guide, *args, **kwargs)

    elbo.loss_and_grads = scaled
    return changing(usual_model(), lambda value: gain.__setitem__(0, value), loss=elbo)


@quiet
def loss_and_gradients_given():
    """`loss_and_grads=` of SVI, with a backward of its own."""
    elbo = Trace_ELBO()

    def gradients(model, guide, *args, **kwargs):
        loss = elbo.differentiable_loss(model, guide, *args, **kwargs)
        (0.5 * loss).backward()
        return loss.item()

    made = alone(usual_model(), usual_guide(), loss=elbo.loss, optim=pyro.optim.SGD({"lr": 3e-3}))
    made.subclass = lambda base: lambda m, g, o, loss, **options: base(m, g, o, loss, gradients, **options)
    return made
