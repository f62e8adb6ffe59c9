"""The modules that programs refer to."""

from torch import nn

from pyro_vae.pair.reach import modules_of, reachable


class Holder:
    def __init__(self):
        self.rate, self.net = 0.5, nn.Linear(2, 2)

    def program(self, x):
        return self.net(x) * self.rate


def test_modules_are_found_through_methods_closures_and_partial_functions():
    holder, inner, outer = Holder(), nn.Dropout(0.5), nn.Sequential(nn.Linear(2, 2))
    parts = {"last": [nn.Linear(2, 3)]}

    def program(x):
        return parts["last"][0](inner(outer[0](outer(x))))

    assert modules_of(holder.program, program) == [holder.net, inner, outer, parts["last"][0]]
    assert holder in list(reachable(holder.program, {}))
