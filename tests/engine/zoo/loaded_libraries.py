"""Objects of other libraries that a program reaches: NumPy, SciPy, scikit-learn, zuko, torchvision, PyYAML, tqdm."""

import decimal
import fractions
import functools
import re
import string

import numpy as np
import pyro
import torch
import yaml
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from tests.engine.zoo.containers import scaled
from tests.engine.zoo.program import (
    alone,
    batches,
    changing,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
    usual_model,
)

quiet = program(visible=False)


@program()
def scaler_of_scikit_learn():
    """A fitted StandardScaler, which is fitted anew."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(np.array([[-1.0], [1.0]]))
    return scaled(lambda: float(scaler.scale_[0]), lambda value: scaler.fit(np.array([[-value], [value]])))


@program()
def masked_array():
    """A NumPy masked array, whose mask changes."""
    values = np.ma.array([1.0, 3.0], mask=[False, True])
    return scaled(lambda: float(values.mean()), lambda value: values.__setattr__("mask", [False, value != 1.5]))


@program()
def numpy_matrix_in_dict_of_module():
    """A NumPy array in a dict of a module changes in place."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.tables = decoder_net(), {"gain": np.eye(3, dtype=np.float32)}

        def forward(self, z):
            return self.linear(z) @ torch.from_numpy(self.tables["gain"])

    decoder = Network()
    return changing(lambda x: observe(x, decoder), lambda value: decoder.tables["gain"].__imul__(value))


@program()
def sparse_matrix_of_scipy():
    """A SciPy sparse matrix, whose data change in place."""
    from scipy import sparse

    matrix = sparse.eye(3, format="csr")
    return scaled(lambda: float(matrix.sum()) / 3, lambda value: matrix.data.fill(value))


@program()
def interpolation_of_scipy():
    """A SciPy interpolator is replaced in a dict."""
    from scipy.interpolate import interp1d

    holder = {"f": interp1d([0.0, 1.0], [1.0, 1.0])}
    return scaled(lambda: float(holder["f"](0.5)), lambda value: holder.update(f=interp1d([0.0, 1.0], [value, value])))


@program()
def configuration_from_yaml():
    """A nested configuration that PyYAML made."""
    config = yaml.safe_load("model: {scale: 1.0, layers: [2, 3]}")
    return scaled(lambda: config["model"]["scale"], lambda value: config["model"].update(scale=value))


@program()
def data_set_in_closure():
    """A TensorDataset in the closure, whose tensors are replaced."""
    data, decoder = TensorDataset(torch.stack(batches())), decoder_net()
    return changing(
        lambda x: observe(x + data[0][0], decoder),
        lambda value: setattr(data, "tensors", (value * torch.stack(batches()),)),
    )


@program("Noisy", "random", "rng", visible=False)
def data_set_with_own_noise():
    """A Dataset that draws from NumPy's generator when it is indexed."""

    class Noisy(Dataset):
        def __getitem__(self, i):
            return torch.as_tensor(np.random.randn(3).astype(np.float32))

        def __len__(self):
            return 8

    data, decoder = Noisy(), decoder_net()
    return alone(lambda x: observe(x + 0.1 * data[0], decoder))


@program()
def decimal_and_fraction():
    """A decimal.Decimal in a list, and a fractions.Fraction."""
    values = [decimal.Decimal("1.0"), fractions.Fraction(1, 1)]

    def write(value):
        values[:] = [decimal.Decimal(str(value)), fractions.Fraction(value).limit_denominator(10)]

    return scaled(lambda: float(values[0]) * float(values[1]), write)


@program()
def decimal_context():
    """The precision of the decimal module's context."""
    before = decimal.getcontext().prec
    made = scaled(
        lambda: 0.5 + float(decimal.Decimal(2) / decimal.Decimal(3)),
        lambda value: setattr(decimal.getcontext(), "prec", {1.5: 1, 0.6: 20, 2.5: 1}[value]),
    )
    made.close = lambda: setattr(decimal.getcontext(), "prec", before)
    return made


@program()
def regular_expression():
    """A compiled regular expression is replaced."""
    holder = [re.compile("a+")]

    def write(value):
        holder[0] = re.compile("b+" if holder[0].pattern == "a+" else "a+")

    return scaled(lambda: 1.0 if holder[0].match("aa") else 2.0, write)


@program()
def template_text():
    """A string.Template, whose text changes."""
    template = string.Template("$a")
    return scaled(lambda: float(template.substitute(a="1.0")), lambda value: setattr(template, "template", str(value)))


@quiet
def flow_of_zuko():
    """Nothing; a flow of zuko is the guide's network."""
    from pyro_vae.distributions.flows import zuko  # which puts back what importing it changes

    torch.manual_seed(4)
    flow = zuko().flows.MAF(features=2, context=3, transforms=1, hidden_features=(4,))

    def guide(x):
        from pyro.contrib.zuko import ZukoToPyro

        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("z", ZukoToPyro(flow(x)))

    return alone(usual_model(), guide)


@quiet
def flow_of_pyro():
    """Nothing; a planar flow of Pyro's transforms, with its cache."""
    import pyro.distributions as dist
    from pyro.distributions.transforms import planar

    torch.manual_seed(4)
    transform, encoder = planar(2), encoder_net()

    def guide(x):
        pyro.module("transform", transform)
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            base = dist.Normal(loc, raw.exp())
            pyro.sample("z", dist.TransformedDistribution(base, [transform]))

    return alone(usual_model(), guide)


@quiet
def resnet_block_of_torchvision():
    """Nothing; torchvision's MLP with dropout is the encoder."""
    from torchvision.ops import MLP

    torch.manual_seed(4)
    encoder = MLP(3, [5, 4], dropout=0.1)
    return alone(usual_model(), lambda x: infer(x, encoder))


@quiet
def scripted_network():
    """Nothing; the encoder is a scripted network."""
    import warnings

    torch.manual_seed(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.Tanh()))
    return alone(usual_model(), lambda x: infer(x, encoder))


@quiet
def compiled_network():
    """Nothing; the encoder is `torch.compile`d, with the eager backend."""
    encoder = torch.compile(encoder_net(), backend="eager")
    return alone(usual_model(), lambda x: infer(x, encoder))


@quiet
def vectorised_by_vmap():
    """Nothing; `torch.func.vmap` in the model."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        pyro.factor("extra", -0.1 * torch.func.vmap(lambda row: decoder(row).square().sum())(z).sum())

    return alone(model)


@quiet
def checkpointed_network():
    """Nothing; the encoder is run under `torch.utils.checkpoint`."""
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(4)
    layers = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.2), nn.Linear(5, 4))

    def guide(x):
        import pyro.distributions as dist

        pyro.module("encoder", layers)
        with pyro.plate("data", len(x)):
            loc, raw = checkpoint(layers, x, use_reentrant=False).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return alone(usual_model(), guide)


@quiet
def recurrent_network():
    """Nothing; an LSTM is the encoder."""
    torch.manual_seed(4)
    network = nn.LSTM(1, 4, batch_first=True)

    def guide(x):
        import pyro.distributions as dist

        pyro.module("network", network)
        features = network(x[..., None])[0][:, -1]
        with pyro.plate("data", len(x)):
            loc, raw = features.chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return alone(usual_model(), guide)


@quiet
def attention_network():
    """Nothing; a transformer layer, with dropout, is the encoder."""
    torch.manual_seed(4)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
    network = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (1, 4)), layer, nn.Flatten())
    return alone(usual_model(), lambda x: infer(x, network))


@quiet
def cached_tensor_function():
    """A functools.lru_cache that makes a tensor once."""

    @functools.lru_cache
    def grid(count):
        return torch.linspace(1.0, 1.5, count)

    decoder = decoder_net()
    return alone(lambda x: observe(x, decoder, grid(3)), kept=lambda: [grid.cache_info().misses, list(grid(3))])
