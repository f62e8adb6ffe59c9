"""Parameters, buffers and networks that are changed, frozen, replaced, cleared or loaded."""

import copy

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import constraints

from tests.engine.zoo.program import (
    Program,
    alone,
    at_steps,
    batches,
    changing,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
    usual_guide,
    usual_model,
)

STORE = pyro.get_param_store


def once(*actions):
    """A hook that runs an action before step 1, one before step 10 and one before step 25."""
    table = dict(zip((1, 10, 25), actions, strict=False))
    return lambda step: table[step]() if step in table else None


def with_decoder(decoder, *actions, **options):
    """The usual pair with a decoder, and what happens before steps 1, 10 and 25."""
    return alone(lambda x: observe(x, decoder), between=once(*actions), **options)


@program()
def weight_frozen_and_freed():
    """A weight's requires_grad: off at step 1, on at step 10, off at step 25."""
    decoder = decoder_net()
    weight = decoder.weight
    off, on = (lambda: weight.requires_grad_(False)), (lambda: weight.requires_grad_(True))
    return with_decoder(decoder, off, on, off)


@program()
def network_frozen_and_freed():
    """A network's requires_grad_: off for steps 10 to 24."""
    decoder = decoder_net()
    return with_decoder(
        decoder, lambda: None, lambda: decoder.requires_grad_(False), lambda: decoder.requires_grad_(True)
    )


@program()
def frozen_from_the_start_and_freed():
    """A weight is frozen from the start, and freed at step 10."""
    decoder = decoder_net()
    decoder.weight.requires_grad_(False)
    return with_decoder(decoder, lambda: None, lambda: decoder.weight.requires_grad_(True))


@program()
def weight_in_place():
    """A weight is filled in place under no_grad."""
    decoder = decoder_net()

    def write(value):
        with torch.no_grad():
            decoder.weight.fill_(value)

    return changing(lambda x: observe(x, decoder), write)


@program()
def weight_data_replaced():
    """A weight's `.data` is replaced."""
    decoder = decoder_net()
    return changing(
        lambda x: observe(x, decoder), lambda value: setattr(decoder.weight, "data", torch.full((3, 2), value))
    )


@program()
def weight_replaced():
    """A weight is replaced by a new nn.Parameter."""
    decoder = decoder_net()
    return changing(
        lambda x: observe(x, decoder), lambda value: setattr(decoder, "weight", nn.Parameter(torch.full((3, 2), value)))
    )


@program()
def state_loaded():
    """`load_state_dict` goes back to the first weights."""
    decoder = decoder_net()
    first = copy.deepcopy(decoder.state_dict())
    back = lambda: decoder.load_state_dict(first)  # noqa: E731
    return with_decoder(decoder, back, back, back)


@program()
def store_cleared():
    """`pyro.clear_param_store()`, with a parameter of the model's own."""
    return alone(own_parameter(), between=once(*[pyro.clear_param_store] * 3))


def own_parameter():
    """The usual model with a scale in the param store."""
    decoder = decoder_net()

    def model(x):
        scale = pyro.param("scale", torch.ones(3), constraint=constraints.positive)
        observe(x, decoder, scale)

    return model


@program()
def store_set_back():
    """`get_state` at step 1, `set_state` at steps 10 and 25."""
    kept = []
    put = lambda: STORE().set_state(kept[0])  # noqa: E731
    return alone(own_parameter(), between=once(lambda: kept.append(copy.deepcopy(STORE().get_state())), put, put))


@program()
def store_entry_assigned():
    """`store["scale"] = ...`."""
    made = alone(own_parameter())
    made.between = at_steps(lambda value: STORE().__setitem__("scale", torch.full((3,), value)))
    return made


@program()
def store_entry_deleted():
    """`del store["scale"]`: the parameter begins anew."""
    made = alone(own_parameter())
    made.between = once(*[lambda: STORE().__delitem__("scale")] * 3)
    return made


@program()
def store_entry_in_place():
    """A parameter of the store is filled in place."""
    made = alone(own_parameter())

    def write(value):
        with torch.no_grad():
            STORE()["scale"].unconstrained().fill_(value - 1)

    made.between = at_steps(write)
    return made


@program()
def parameter_appears_later():
    """A flag brings in a further parameter."""
    decoder, flags = decoder_net(), {"shift": False}

    def model(x):
        observe(x + pyro.param("shift", torch.ones(3)) if flags["shift"] else x, decoder)

    return changing(model, lambda value: flags.update(shift=not flags["shift"]))


@program()
def initial_value_used_after_clearing():
    """A parameter's initial value is a closure that changes, and the store is cleared."""
    decoder, start = decoder_net(), [1.0]

    def model(x):
        observe(x, decoder, pyro.param("scale", lambda: torch.tensor(start[0]), constraint=constraints.positive))

    def write(value):
        start[0] = value
        pyro.clear_param_store()

    return changing(model, write)


@program(visible=False)
def one_network_in_both():
    """Nothing; model and guide share a network."""
    torch.manual_seed(4)
    shared = nn.Linear(3, 4)

    def model(x):
        pyro.module("shared", shared)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ shared.weight[:2], 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("shared", shared)
        with pyro.plate("data", len(x)):
            loc, raw = shared(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return Program(model, guide)


@program()
def network_switched():
    """Which of two networks the guide uses, from a dict."""
    torch.manual_seed(4)
    networks, chosen = {"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)}, {"name": "a"}

    def guide(x):
        pyro.module(chosen["name"], networks[chosen["name"]])
        with pyro.plate("data", len(x)):
            loc, raw = networks[chosen["name"]](x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return changing(usual_model(), lambda value: chosen.update(name="b" if chosen["name"] == "a" else "a"), guide)


@program(visible=False)
def network_of_another_optimizer():
    """A network that is not registered, and is trained by a torch optimizer between steps."""
    torch.manual_seed(4)
    features = nn.Linear(3, 3)
    other = torch.optim.SGD(features.parameters(), lr=0.01)
    decoder, encoder, data = decoder_net(), encoder_net(), batches()

    def take(run, step):
        other.zero_grad()
        loss = run.svi.step(data[step % 3])
        other.step()
        return loss

    return Program(
        lambda x: observe(x, decoder), lambda x: infer(features(x), encoder), take=take, kept=features.state_dict
    )


@program(visible=False)
def leaf_in_closure():
    """A leaf in the closure, whose `.grad` is added up."""
    decoder, leaf = decoder_net(), torch.ones(3, requires_grad=True)
    return alone(lambda x: observe(x * leaf, decoder), kept=lambda: leaf.grad)


@program(visible=False)
def leaf_in_closure_trained_by_hand():
    """A leaf in the closure, which the user moves along its `.grad`."""
    decoder, leaf, data = decoder_net(), torch.ones(3, requires_grad=True), batches()

    def take(run, step):
        loss = run.svi.step(data[step % 3])
        with torch.no_grad():
            leaf.sub_(0.001 * leaf.grad)
        leaf.grad = None
        return loss

    return alone(lambda x: observe(x * leaf, decoder), usual_guide(), take=take, kept=lambda: leaf)


@program(visible=False)
def gradient_added_by_user():
    """The user adds to a parameter's `.grad` between steps, which Pyro's step adds to."""
    decoder, data = decoder_net(), batches()

    def take(run, step):
        if step in (10, 25):
            decoder.weight.grad = torch.full((3, 2), 50.0)
        return run.svi.step(data[step % 3])

    return alone(lambda x: observe(x, decoder), take=take)


@program(visible=False)
def own_step_on_shared_network():
    """The user trains the decoder by a torch optimizer between SVI's steps."""
    decoder, data = decoder_net(), batches()
    other = torch.optim.Adam(decoder.parameters(), lr=0.01)

    def take(run, step):
        loss = run.svi.step(data[step % 3])
        other.zero_grad()
        decoder(data[0][:, :2]).square().sum().backward()
        other.step()
        other.zero_grad()
        return loss

    return alone(lambda x: observe(x, decoder), take=take)


@program()
def size_of_store():
    """The model asks how many parameters Pyro's store holds."""
    decoder = decoder_net()

    def model(x):
        observe(x, decoder, 0.5 + len(list(pyro.get_param_store().keys())) / 8)

    return changing(model, lambda value: pyro.param(f"other {value}", torch.tensor(value)))
