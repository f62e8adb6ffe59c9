"""Tensors and NumPy arrays that are neither arguments nor parameters."""

import types

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from tests.engine.zoo.containers import scaled
from tests.engine.zoo.program import batches, changing, decoder_net, observe, program

NAMESPACE = types.SimpleNamespace(scale=torch.tensor(1.0))


@program()
def tensor_in_place():
    """A tensor in the closure is filled in place."""
    scale = torch.tensor(1.0)
    return scaled(lambda: scale, scale.fill_)


@program()
def tensor_rebound():
    """A tensor in the closure is replaced by another."""
    decoder, scale = decoder_net(), torch.tensor(1.0)

    def model(x):
        observe(x, decoder, scale)

    def write(value):
        nonlocal scale
        scale = torch.tensor(value)

    return changing(model, write)


@program()
def tensor_in_list_replaced():
    """A tensor in a list is replaced."""
    scales = [torch.tensor(1.0)]
    return scaled(lambda: scales[0], lambda value: scales.__setitem__(0, torch.tensor(value)))


@program()
def tensor_in_dict_replaced():
    """A tensor in a dict of lists is replaced."""
    scales = {"a": [torch.tensor(1.0)]}
    return scaled(lambda: scales["a"][0], lambda value: scales.update(a=[torch.tensor(value)]))


@program()
def tensor_in_global_namespace():
    """A tensor in a global namespace is replaced."""
    NAMESPACE.scale = torch.tensor(1.0)
    decoder = decoder_net()

    def model(x):
        observe(x, decoder, NAMESPACE.scale)

    return changing(model, lambda value: setattr(NAMESPACE, "scale", torch.tensor(value)))


@program()
def tensor_data_replaced():
    """The `.data` of a tensor in the closure is replaced."""
    scale = torch.tensor(1.0)
    return scaled(lambda: scale, lambda value: setattr(scale, "data", torch.tensor(value)))


@program()
def tensor_data_filled():
    """The `.data` of a tensor is filled, which does not count as a version."""
    scale = torch.tensor(1.0)
    return scaled(lambda: scale, lambda value: scale.data.fill_(value))


@program()
def tensor_set_to_other_storage():
    """A tensor is pointed at another storage by `set_`."""
    scale = torch.tensor(1.0)
    return scaled(lambda: scale, lambda value: scale.set_(torch.tensor(value)))


@program()
def tensor_read_as_number():
    """`float(tensor)` of a tensor that is filled in place."""
    scale = torch.tensor(1.0)
    return scaled(lambda: float(scale), scale.fill_)


@program()
def tensor_data_read_as_number():
    """`.item()` of a tensor that is filled through `.data`, which does not count as a version."""
    scale = torch.tensor(1.0)
    return scaled(lambda: scale.item(), lambda value: scale.data.fill_(value))


@program()
def tensor_decides_branch():
    """A tensor in the closure decides a branch."""
    wide = torch.tensor(False)
    return scaled(lambda: 2.0 if wide else 1.0, lambda value: wide.logical_not_())


@program()
def view_of_changed_base():
    """A view, whose base is changed in place."""
    base = torch.ones(4)
    view = base[2]
    return scaled(lambda: view, lambda value: base.fill_(value))


@program()
def numpy_in_place():
    """A NumPy array is changed in place."""
    values = np.ones(3)
    return scaled(lambda: float(values[1]), lambda value: values.fill(value))


@program()
def numpy_view_of_base():
    """A view of a NumPy array, whose base is changed in place."""
    base = np.ones((3, 3))
    view = base[1:, 1]
    return scaled(lambda: float(view.sum() / 2), lambda value: base.fill(value))


@program()
def numpy_as_tensor_each_call():
    """`torch.as_tensor(array)` in each call, of an array changed in place."""
    values = np.ones(3, dtype=np.float32)
    return scaled(lambda: torch.as_tensor(values), lambda value: values.fill(value))


@program()
def numpy_under_tensor():
    """A NumPy array that shares its memory with a tensor in the closure."""
    values = np.ones(3, dtype=np.float32)
    scale = torch.from_numpy(values)
    return scaled(lambda: scale, lambda value: values.fill(value))


@program()
def numpy_under_tensor_read_as_number():
    """A number read from a tensor whose memory NumPy changes, which does not count as a version."""
    values = np.ones(3, dtype=np.float32)
    scale = torch.from_numpy(values)
    return scaled(lambda: scale[0].item(), lambda value: values.fill(value))


@program()
def numpy_scalar_rebound():
    """A NumPy scalar in the closure is replaced."""
    decoder, scale = decoder_net(), np.float64(1.0)

    def model(x):
        observe(x, decoder, float(scale))

    def write(value):
        nonlocal scale
        scale = np.float64(value)

    return changing(model, write)


@program()
def numpy_zero_dimensional():
    """A NumPy array without dimensions is changed in place."""
    scale = np.array(1.0)
    return scaled(lambda: scale.item(), lambda value: scale.fill(value))


@program()
def numpy_structured():
    """A field of a structured NumPy array."""
    values = np.ones(2, dtype=[("scale", "f4"), ("count", "i4")])
    return scaled(lambda: float(values["scale"][0]), lambda value: values["scale"].fill(value))


@program()
def numpy_of_objects():
    """A list inside a NumPy array of objects."""
    inner = [1.0]
    values = np.empty(1, dtype=object)
    values[0] = inner
    return scaled(lambda: values[0][0], lambda value: inner.__setitem__(0, value))


@program()
def numpy_large_middle():
    """One entry in the middle of a large NumPy array."""
    values = np.ones(100_001)
    return scaled(lambda: float(values[50_000]), lambda value: values.__setitem__(50_000, value))


@program()
def data_set_in_closure_indexed():
    """The batch is taken from a tensor in the closure by an index that changes."""
    decoder, data, place = decoder_net(), torch.stack(batches()), [0]

    def model(x):
        observe(data[place[0]] + 0 * x, decoder)

    return changing(model, lambda value: place.__setitem__(0, (place[0] + 1) % 3))


@program()
def shape_of_tensor_in_closure():
    """Only the shape of a tensor in the closure is read; the tensor is replaced."""
    holder = [torch.zeros(4, 2)]
    return scaled(lambda: holder[0].shape[0] / 4, lambda value: holder.__setitem__(0, torch.zeros(int(4 * value), 2)))


@program()
def tensor_attribute():
    """A Python attribute set on a tensor."""
    scale = torch.tensor(1.0)
    scale.gain = 1.0
    return scaled(lambda: scale * scale.gain, lambda value: setattr(scale, "gain", value))


@program()
def distribution_in_closure():
    """A distribution in the closure, whose parameter is filled in place."""
    decoder = decoder_net()
    prior = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    return changing(model, lambda value: prior.base_dist.scale.fill_(value))


@program()
def distribution_attribute_replaced():
    """A distribution in the closure, whose parameter is replaced."""
    decoder = decoder_net()
    prior = dist.Normal(torch.zeros(2), torch.ones(2))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    return changing(model, lambda value: setattr(prior, "scale", torch.full((2,), value)))


@program()
def tensor_becomes_constant_of_python():
    """A list of numbers becomes a tensor in each call."""
    decoder, values = decoder_net(), [1.0, 1.0, 1.0]

    def model(x):
        observe(x, decoder, torch.tensor(values))

    return changing(model, lambda value: values.__setitem__(slice(None), [value] * 3))


@program()
def sparse_tensor_in_place():
    """The values of a sparse tensor are filled in place."""
    sparse = torch.eye(3).to_sparse().coalesce()
    return scaled(lambda: torch.sparse.sum(sparse) / 3, lambda value: sparse.values().fill_(value))


@program()
def tensor_subclass():
    """A tensor subclass with a unit, replaced in the closure."""

    class Unit(torch.Tensor):
        pass

    holder = {"scale": torch.tensor(1.0).as_subclass(Unit)}
    return scaled(
        lambda: holder["scale"].as_subclass(torch.Tensor),
        lambda value: holder.update(scale=torch.tensor(value).as_subclass(Unit)),
    )


@program()
def tensor_of_other_shape():
    """A constant tensor gets other numbers, as many as the value says."""
    width = torch.ones(1)
    return scaled(
        lambda: 0.5 + width.mean() * width.numel() / 4, lambda value: setattr(width, "data", torch.ones(int(2 * value)))
    )


@program()
def tensor_becomes_view_of_one_written_to():
    """A constant becomes a view of a tensor that the model writes to."""
    decoder, running, held = decoder_net(), torch.zeros(3), types.SimpleNamespace(scale=torch.ones(3))

    def model(x):
        running.mul_(0.5).add_(x.mean(0).abs())
        observe(x, decoder, 0.5 + held.scale)

    return changing(model, lambda value: setattr(held, "scale", running.view(3)))


@program()
def row_of_structured_array():
    """A row of a structured NumPy array, which is written to with the array."""
    table = np.ones(1, dtype=[("scale", "f8")])
    row = table[0]
    return scaled(lambda: float(row["scale"]), lambda value: table["scale"].fill(value))
