"""Programs that ask about their surroundings: gradient mode, tracing, tensors' own properties; Pyro's structures."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.engine.zoo.program import (
    Program,
    alone,
    batches,
    changing,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
)

quiet = program(visible=False)


@quiet
def asks_for_gradient_mode():
    """A branch on `torch.is_grad_enabled()`, while `evaluate_loss` is called in between."""
    decoder = decoder_net()

    def take(run, step):
        return [run.svi.step(*run.args(step)), run.svi.evaluate_loss(*run.args(step))]

    return alone(lambda x: observe(x, decoder, 1.0 if torch.is_grad_enabled() else 2.0), take=take)


@quiet
def asks_for_compiler():
    """A branch on `torch.compiler.is_compiling()` and `torch.jit.is_tracing()`."""
    decoder = decoder_net()

    def model(x):
        hidden = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._get_tracing_state() is not None
        observe(x, decoder, 2.0 if hidden else 1.0)

    return alone(model)


@quiet
def asks_for_tensor_type():
    """A branch on `type(x) is torch.Tensor`."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder, 1.0 if type(x) is torch.Tensor else 2.0)
        pyro.factor("extra", -z.square().sum() * (0.1 if type(z) is torch.Tensor else 0.9))

    return alone(model)


@quiet
def asks_whether_latent_has_gradient():
    """A branch on `z.requires_grad` and `z.grad_fn`."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        pyro.factor("extra", -z.square().sum() * (0.1 if z.requires_grad and z.grad_fn is not None else 0.9))

    return alone(model)


@quiet
def asks_for_leaf():
    """A branch on `x.is_leaf` and `x.is_contiguous()`."""
    decoder = decoder_net()
    return alone(lambda x: observe(x, decoder, 1.0 if x.is_leaf and x.is_contiguous() else 2.0))


@program()
def asks_for_version():
    """A branch on `x._version` of a batch that is changed in place."""
    decoder, data = decoder_net(), batches()

    def model(x):
        observe(x, decoder, 1.0 + 0.3 * x._version)

    return changing(model, lambda value: data[0].mul_(1.0), args=lambda step: (data[0],))


@quiet
def asks_for_same_tensor():
    """A branch on whether the batch is a certain tensor (`is`)."""
    decoder, data = decoder_net(), batches()

    def model(x):
        observe(x, decoder, 2.0 if x is data[0] else 1.0)

    return alone(model, args=lambda step: (data[step % 3],))


@quiet
def asks_for_default_dtype():
    """A tensor of `torch.get_default_dtype()`."""
    decoder = decoder_net()
    return alone(lambda x: observe(x, decoder, torch.ones(3, dtype=torch.get_default_dtype())))


@quiet
def gradient_inside_model():
    """The model takes a gradient by `torch.autograd.grad`."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        (slope,) = torch.autograd.grad(decoder(z).square().sum(), z, create_graph=True)
        pyro.factor("extra", -0.01 * slope.square().sum())

    return alone(model)


@quiet
def custom_autograd_function():
    """A torch.autograd.Function with a gradient of its own."""

    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        pyro.factor("extra", -0.1 * (Straight.apply(z) - 1).square().sum())

    return alone(model)


@program(visible=False)
def stop_gradient():
    """`detach` and `no_grad` inside the model."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        with torch.no_grad():
            target = decoder(z).mean()
        pyro.factor("extra", -0.1 * (z.detach() - target).square().sum() - 0.1 * (z - target).square().sum())

    return alone(model)


@quiet
def markov_chain():
    """A pyro.markov chain of three steps."""

    def model(x):
        rate = pyro.param("rate", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            state = torch.zeros(len(x))
            for t in pyro.markov(range(3)):
                state = pyro.sample(f"z_{t}", dist.Normal(rate * state, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(state, 0.5), obs=x[:, t])

    def guide(x):
        gain = pyro.param("gain", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(3)):
                pyro.sample(f"z_{t}", dist.Normal(gain * x[:, t], 0.7))

    return Program(model, guide)


@quiet
def enumerated_hidden_markov():
    """A hidden Markov model whose states are summed out."""

    @config_enumerate
    def model(x):
        transition = pyro.param(
            "transition", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=dist.constraints.simplex
        )
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x), dim=-1):
            state = 0
            for t in pyro.markov(range(3)):
                state = pyro.sample(f"z_{t}", dist.Categorical(transition[state]))
                pyro.sample(f"x_{t}", dist.Normal(locs[state], 1.0), obs=x[:, t])

    return Program(model, lambda x: None, loss=TraceEnum_ELBO(max_plate_nesting=1))


@quiet
def sequential_plate():
    """`for i in pyro.plate(...)`."""
    decoder, encoder = decoder_net(), encoder_net()

    def model(x):
        pyro.module("decoder", decoder)
        for i in pyro.plate("data", 3):
            z = pyro.sample(f"z_{i}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(f"x_{i}", dist.Normal(decoder(z), 1.0).to_event(1), obs=x[i])

    def guide(x):
        pyro.module("encoder", encoder)
        for i in pyro.plate("data", 3):
            loc, raw = encoder(x[i]).chunk(2, -1)
            pyro.sample(f"z_{i}", dist.Normal(loc, raw.exp()).to_event(1))

    return Program(model, guide)


@quiet
def sequential_plate_subsampled():
    """`for i in pyro.plate(..., subsample_size=2)`, which draws indices as Python ints."""
    decoder, encoder = decoder_net(), encoder_net()

    def model(x):
        pyro.module("decoder", decoder)
        for i in pyro.plate("data", 8, subsample_size=2):
            z = pyro.sample(f"z_{i}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(f"x_{i}", dist.Normal(decoder(z), 1.0).to_event(1), obs=x[i])

    def guide(x):
        pyro.module("encoder", encoder)
        for i in pyro.plate("data", 8, subsample_size=2):
            loc, raw = encoder(x[i]).chunk(2, -1)
            pyro.sample(f"z_{i}", dist.Normal(loc, raw.exp()).to_event(1))

    return Program(model, guide)


@program(visible=False)
def packed_sequences():
    """A recurrent network on packed sequences, whose lengths change."""
    torch.manual_seed(8)
    network, decoder, data = nn.GRU(1, 4, batch_first=True), decoder_net(), batches()

    def guide(x, lengths):
        pyro.module("network", network)
        packed = pack_padded_sequence(x[..., None], lengths, batch_first=True, enforce_sorted=False)
        features, _ = pad_packed_sequence(network(packed)[0], batch_first=True, total_length=3)
        with pyro.plate("data", len(x)):
            loc, raw = features.sum(1).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    lengths = [torch.full((8,), 3), torch.arange(8) % 3 + 1, torch.full((8,), 2)]
    return Program(
        lambda x, lengths: observe(x, decoder), guide, args=lambda step: (data[step % 3], lengths[step * step % 5 % 3])
    )


@program()
def mask_in_list_replaced():
    """The mask of poutine.mask, a tensor in a list, is replaced."""
    decoder, encoder, masks = decoder_net(), encoder_net(), [torch.ones(8, dtype=torch.bool)]

    def model(x):
        with poutine.mask(mask=masks[0]):
            observe(x, decoder)

    return changing(model, lambda value: masks.__setitem__(0, torch.arange(8) > 2 * value), lambda x: infer(x, encoder))


@program()
def mask_true_or_false():
    """The mask of poutine.mask is a Python bool that changes."""
    decoder, masks = decoder_net(), [True]

    def model(x):
        z = observe(x, decoder)
        with poutine.mask(mask=masks[0]):
            pyro.sample("extra", dist.Normal(z.sum(), 1.0), obs=torch.tensor(4.0))

    return changing(model, lambda value: masks.__setitem__(0, not masks[0]))


@program()
def plate_size_changes():
    """The full size of a subsampled plate, from a dict."""
    decoder, encoder, sizes = decoder_net(), encoder_net(), {"all": 50}

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", sizes["all"], subsample=x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", sizes["all"], subsample=x):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return changing(model, lambda value: sizes.update(all=round(50 * value)), guide)


@program()
def infer_config_changes():
    """A handler object in the closure, whose scale is changed."""
    decoder, handler = decoder_net(), poutine.scale(scale=1.0)

    def model(x):
        with handler:
            return observe(x, decoder)

    return changing(model, lambda value: setattr(handler, "scale", value))


@program()
def condition_handler_data():
    """The data of a poutine.condition in the closure are replaced."""
    decoder, handler = decoder_net(), poutine.condition(data={"extra": torch.tensor(1.0)})

    def model(x):
        z = observe(x, decoder)
        with handler:
            pyro.sample("extra", dist.Normal(z.sum(), 1.0), infer={"is_auxiliary": True})

    return changing(model, lambda value: handler.data.update(extra=torch.tensor(3 * value)))


@program()
def pyro_param_replaced():
    """A PyroParam is assigned anew."""

    class Network(PyroModule):
        def __init__(self):
            super().__init__()
            self.decoder = decoder_net()
            self.scale = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)

    net = Network()
    return changing(net, lambda value: setattr(net, "scale", torch.tensor(value)))
