"""Layers, buffers, modes and normalisations of networks."""

import pyro
import torch
from torch import nn

from tests.engine.zoo.parameters import once, with_decoder
from tests.engine.zoo.program import (
    alone,
    changing,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
    usual_model,
)


@program()
def layer_replaced_in_sequential():
    """A layer of an nn.Sequential is replaced by another of its kind."""
    torch.manual_seed(4)
    layers, spare = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)), [nn.Linear(4, 3) for _ in range(3)]
    return with_decoder(layers, *(lambda i=i: layers.__setitem__(2, spare[i]) for i in range(3)))


@program()
def activation_replaced_in_sequential():
    """An activation of an nn.Sequential is replaced."""
    torch.manual_seed(4)
    layers = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    kinds = nn.ReLU(), nn.Sigmoid(), nn.Tanh()
    return with_decoder(layers, *(lambda kind=kind: layers.__setitem__(1, kind) for kind in kinds))


@program()
def layer_appended():
    """An nn.Sequential grows."""
    torch.manual_seed(4)
    layers, spare = nn.Sequential(nn.Linear(2, 3)), [nn.Linear(3, 3) for _ in range(3)]
    return with_decoder(layers, *(lambda one=one: layers.append(one) for one in spare))


@program()
def parameter_list_grows():
    """An nn.ParameterList, over which the model sums, grows."""

    class Offsets(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.offsets = decoder_net(), nn.ParameterList([nn.Parameter(torch.ones(3))])

        def forward(self, z):
            return self.linear(z) + sum(self.offsets)

    decoder = Offsets()
    return changing(
        lambda x: observe(x, decoder), lambda value: decoder.offsets.append(nn.Parameter(torch.full((3,), value)))
    )


@program()
def weights_tied_later():
    """Two layers come to share a weight."""
    torch.manual_seed(4)
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 3))
    return with_decoder(layers, lambda: setattr(layers[1], "weight", layers[0].weight))


@program()
def buffer_in_place():
    """A buffer is filled in place."""
    decoder = nn.Sequential(decoder_net(), Gain())
    return changing(lambda x: observe(x, decoder), lambda value: decoder[1].gain.fill_(value))


@program()
def buffer_replaced():
    """A buffer is replaced by another tensor."""
    decoder = nn.Sequential(decoder_net(), Gain())
    return changing(lambda x: observe(x, decoder), lambda value: setattr(decoder[1], "gain", torch.tensor(value)))


@program()
def buffer_of_other_shape():
    """A buffer is replaced by one of another shape."""
    decoder = nn.Sequential(decoder_net(), Gain())
    shapes = (1,), (3,), (8, 3)
    return with_decoder(
        decoder, *(lambda shape=shape: setattr(decoder[1], "gain", torch.full(shape, 1.4)) for shape in shapes)
    )


class Gain(nn.Module):
    """Times a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.tensor(1.0))

    def forward(self, x):
        return self.gain * x


@program()
def modes_with_dropout():
    """`eval()` at step 1, `train()` at step 10, `eval()` at step 25, with dropout."""
    decoder = nn.Sequential(decoder_net(), nn.Dropout(0.5))
    return with_decoder(decoder, decoder.eval, decoder.train, decoder.eval)


@program()
def mode_of_one_layer():
    """`eval()` of one nested layer alone."""
    decoder = nn.Sequential(nn.Sequential(decoder_net(), nn.Dropout(0.5)), nn.Identity())
    return with_decoder(decoder, decoder[0][1].eval, decoder[0][1].train, decoder[0][1].eval)


@program()
def dropout_rate():
    """The rate of a dropout layer."""
    decoder = nn.Sequential(decoder_net(), nn.Dropout(0.1))
    return changing(lambda x: observe(x, decoder), lambda value: setattr(decoder[1], "p", value / 4))


@program(visible=False)
def batch_norm():
    """Nothing; the running statistics of a batch norm evolve."""
    torch.manual_seed(4)
    encoder = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4))
    return alone(usual_model(), lambda x: infer(x, encoder), kept=encoder.state_dict)


@program()
def batch_norm_modes():
    """A batch norm under `eval()` for steps 1 to 9 and from 25 on."""
    torch.manual_seed(4)
    encoder = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4))
    return alone(
        usual_model(),
        lambda x: infer(x, encoder),
        between=once(encoder.eval, encoder.train, encoder.eval),
        kept=encoder.state_dict,
    )


@program(visible=False)
def batch_norm_momentum():
    """The momentum of a batch norm, which shows in its statistics alone."""
    encoder = nn.Sequential(nn.BatchNorm1d(3), encoder_net())
    made = changing(usual_model(), lambda value: setattr(encoder[0], "momentum", value / 5))
    made.guide = lambda x: infer(x, encoder)
    made.kept = encoder.state_dict
    return made


@program(visible=False, exact=False)
def bias_before_batch_norm():
    """Nothing; a bias before a batch norm, whose gradient is zero up to rounding."""
    torch.manual_seed(4)
    encoder = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
    return alone(usual_model(), lambda x: infer(x, encoder), optim=pyro.optim.SGD({"lr": 1e-3}))


@program()
def layer_norm_epsilon():
    """`eps` of a layer norm."""
    encoder = nn.Sequential(encoder_net(), nn.LayerNorm(4))
    made = changing(usual_model(), lambda value: setattr(encoder[1], "eps", value))
    made.guide = lambda x: infer(x, encoder)
    return made


@program(visible=False)
def spectral_norm():
    """Nothing; spectral normalisation changes its buffers at each step."""
    decoder = nn.utils.parametrizations.spectral_norm(decoder_net())
    return alone(lambda x: observe(x, decoder), kept=decoder.state_dict)


@program()
def parametrization_added():
    """A weight normalisation is added at step 10."""
    decoder = decoder_net()
    return with_decoder(
        decoder, lambda: decoder.weight.data.mul_(3), lambda: nn.utils.parametrizations.weight_norm(decoder)
    )
