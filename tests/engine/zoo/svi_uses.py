"""Ways of using SVI: parts replaced, contexts around steps, several SVIs, subclasses, threads."""

import copy

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from tests.engine.zoo.parameters import once
from tests.engine.zoo.program import (
    Program,
    alone,
    changing,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
    usual_model,
)

quiet = program(visible=False)


def scaled_models(*scales):
    """Models that share a decoder, with different scales."""
    decoder = decoder_net()
    return [lambda x, scale=scale: observe(x, decoder, scale) for scale in scales]


def usual():
    """The usual pair."""
    return alone(usual_model())


@program()
def model_replaced():
    """`svi.model` is replaced."""
    first, *others = scaled_models(1.0, 1.5, 0.6, 2.5)
    made = alone(first)
    made.between = once(*(lambda model=model: setattr(made.svi, "model", model) for model in others))
    return made


@program()
def guide_replaced():
    """`svi.guide` is replaced."""
    made, encoder = usual(), encoder_net()

    def put(scale):
        made.svi.guide = lambda x: infer(x, encoder, scale)

    made.between = once(lambda: put(1.5), lambda: put(0.6), lambda: put(2.5))
    return made


@program()
def loss_and_gradients_replaced():
    """`svi.loss_and_grads` is replaced."""
    made = usual()
    put = lambda elbo: setattr(made.svi, "loss_and_grads", elbo.loss_and_grads)  # noqa: E731
    made.between = once(
        lambda: put(Trace_ELBO(num_particles=3)), lambda: put(TraceMeanField_ELBO()), lambda: put(Trace_ELBO())
    )
    return made


@program()
def loss_replaced():
    """`svi.loss` is replaced, which `evaluate_loss` alone looks at."""
    made = usual()
    made.take = lambda run, step: [run.svi.step(*run.args(step)), run.svi.evaluate_loss(*run.args(step))]
    put = lambda elbo: setattr(made.svi, "loss", elbo.loss)  # noqa: E731
    made.between = once(
        lambda: put(Trace_ELBO(num_particles=3)), lambda: put(TraceMeanField_ELBO()), lambda: put(Trace_ELBO())
    )
    return made


@quiet
def evaluation_in_between():
    """`evaluate_loss` after each step."""
    return alone(
        usual_model(),
        take=lambda run, step: [run.svi.step(*run.args(step)), run.svi.evaluate_loss(*run.args(step))],
    )


@program("history", "append", visible=False, warnings=2)
def evaluation_of_recording_model():
    """`evaluate_loss` after each step, of a model that records."""
    decoder, history = decoder_net(), []

    def model(x):
        history.append(observe(x, decoder).norm().item())

    return alone(
        model,
        take=lambda run, step: [run.svi.step(*run.args(step)), run.svi.evaluate_loss(*run.args(step))],
        kept=lambda: history,
    )


@program()
def evaluation_after_change():
    """A list changes, and `evaluate_loss` alone is called in between."""
    decoder, values = decoder_net(), [1.0]

    def take(run, step):
        return run.svi.step(*run.args(step)) if step % 3 == 0 else run.svi.evaluate_loss(*run.args(step))

    return changing(lambda x: observe(x, decoder, values[0]), lambda value: values.__setitem__(0, value), take=take)


@quiet
def two_svis_in_turn():
    """Two SVIs of one pair, with losses of their own, in turn."""
    made, others = usual(), []
    made.start = lambda: others.append(
        made.make(made.model, made.guide, pyro.optim.SGD({"lr": 1e-3}), TraceMeanField_ELBO())
    )
    made.take = lambda run, step: [run.svi.step(*run.args(step)), others[0].step(*run.args(step))]
    return made


@quiet
def two_svis_share_optimizer():
    """Two SVIs of two pairs that share decoder and optimizer, in turn."""
    decoder, other = decoder_net(), []
    made = alone(lambda x: observe(x, decoder))
    torch.manual_seed(40)
    encoder = torch.nn.Linear(3, 4)

    def guide(x):
        pyro.module("second", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    made.start = lambda: other.append(made.make(made.model, guide, made.optim, made.loss))
    made.take = lambda run, step: [run.svi.step(*run.args(step)), other[0].step(*run.args(step))]
    return made


@program(visible=False, warnings=2)
def alternating_model_and_guide():
    """Two SVIs: one trains the guide, the other the model, by `poutine.block`ed parameters."""
    decoder, encoder, other = decoder_net(), encoder_net(), []

    def model(x):
        observe(x, decoder)

    def guide(x):
        infer(x, encoder)

    def blocked(function):
        return poutine.block(function, hide_types=["param"])

    made = Program(blocked(model), guide)
    made.start = lambda: other.append(made.make(model, blocked(guide), pyro.optim.Adam({"lr": 0.02}), Trace_ELBO()))
    made.take = lambda run, step: [run.svi.step(*run.args(step)), other[0].step(*run.args(step))]
    return made


@program()
def new_svi_made():
    """A new SVI is made at steps 1, 10 and 25, with a fresh optimizer."""
    made = usual()

    def renew():
        made.svi = made.make(made.model, made.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())

    made.between = once(renew, renew, renew)
    return made


@quiet
def subclass_of_svi():
    """A subclass of SVI, whose `step` records the losses."""
    losses = []

    def subclass(base):
        class Recording(base):
            def step(self, *args, **kwargs):
                losses.append(super().step(*args, **kwargs))
                return losses[-1]

        return Recording

    return alone(usual_model(), subclass=subclass, kept=lambda: [float(loss) for loss in losses])


@program()
def step_of_instance_wrapped():
    """`svi.step` is replaced on the instance by a function that steps twice."""
    made = usual()

    def double():
        step = made.svi.step

        def twice(*args):
            step(*args)
            return step(*args)

        made.svi.step = twice

    made.between = once(double)
    return made


@quiet
def loss_as_number():
    """The loss is used as a number: formatted, compared, summed and serialised."""
    import json

    def take(run, step):
        loss = run.svi.step(*run.args(step))
        return [f"{loss:.2f}", json.loads(json.dumps({"loss": float(loss)}))["loss"], loss > 0, sum([loss, 1.0])]

    return alone(usual_model(), take=take)


@quiet
def predictive_in_between():
    """pyro.infer.Predictive draws from the pair between steps."""
    from pyro.infer import Predictive

    drawn = []

    def take(run, step):
        loss = run.svi.step(*run.args(step))
        if step % 10 == 2:
            predictive = Predictive(run.model, guide=run.guide, num_samples=2, return_sites=["z"])
            drawn.append(predictive(*run.args(step))["z"])
        return loss

    return alone(usual_model(), take=take, kept=lambda: drawn)


@quiet
def parameters_averaged_by_user():
    """The user keeps a moving average of the parameters, and swaps it in for evaluation."""
    average = {}

    def take(run, step):
        loss = run.svi.step(*run.args(step))
        params = dict(pyro.get_param_store().named_parameters())
        with torch.no_grad():
            for name, param in params.items():
                average.setdefault(name, param.detach().clone()).mul_(0.9).add_(0.1 * param)
            if step % 10 == 5:
                kept = {name: param.detach().clone() for name, param in params.items()}
                for name, param in params.items():
                    param.copy_(average[name])
                loss = run.svi.evaluate_loss(*run.args(step))
                for name, param in params.items():
                    param.copy_(kept[name])
        return loss

    return alone(usual_model(), take=take, kept=lambda: average)


@program()
def module_copied_and_restored():
    """The guide's network is deep-copied at step 1, and its copy takes its place at steps 10 and 25."""
    holder, kept = {"encoder": encoder_net()}, []
    back = lambda: holder.update(encoder=copy.deepcopy(kept[0]))  # noqa: E731
    made = alone(usual_model(), lambda x: infer(x, holder["encoder"]))
    made.between = once(lambda: kept.append(copy.deepcopy(holder["encoder"])), back, back)
    return made


@quiet
def param_store_saved():
    """`param_store.get_state()` is taken after each step, and must be what training has reached."""
    states = []

    def take(run, step):
        loss = run.svi.step(*run.args(step))
        if step in (2, 12, 29):
            states.append(copy.deepcopy(pyro.get_param_store().get_state()["params"]))
        return loss

    return alone(usual_model(), take=take, kept=lambda: states)


@quiet
def optimizer_state_read():
    """`optim.get_state()` after some steps: moments and counts of steps."""
    made, states = usual(), []

    def take(run, step):
        loss = run.svi.step(*run.args(step))
        if step in (2, 12, 29):
            state = made.optim.get_state()
            states.append({name: copy.deepcopy(state[name]["state"]) for name in sorted(state)})
        return loss

    made.take, made.kept = take, lambda: states
    return made
