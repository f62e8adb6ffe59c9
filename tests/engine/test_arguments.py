"""What makes two calls of a kind: tensors by shape, plain values by value, and numbers that change as tensors."""

import argparse
import collections
import dataclasses
import logging
import types

import pyro
import pytest
import torch
from torch import nn

from pyro_vae.engine import policy
from pyro_vae.engine.arguments import Arguments, Unkeyed, flatten, unflatten
from pyro_vae.engine.replay import Replay
from tests.engine.counter import counter


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    weight: float = 1.0


class Pair(collections.namedtuple("Pair", "x y")):
    """A named tuple with a subclass's method."""

    def sum(self):
        return self.x.sum() + self.y.sum()


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    flag: bool


NESTED = {
    "list": [torch.ones(2), 3.0],
    "tuple": (torch.ones(2), "a"),
    "dict": {"b": torch.ones(2), "a": None},
    "ordered": collections.OrderedDict(b=1, a=torch.ones(2)),
    "argparse": argparse.Namespace(x=torch.ones(2), k=3),
    "namespace": types.SimpleNamespace(x=torch.ones(2), k=[1, (2,)]),
    "dataclass": Batch(torch.ones(2)),
    "frozen dataclass": Frozen(torch.ones(2), True),
    "named tuple": Pair(torch.ones(2), torch.zeros(1)),
    "of each other": {"x": [Pair(Batch(torch.ones(1)), types.SimpleNamespace(y={"z": (1.0,)}))]},
    "empty": [(), {}, types.SimpleNamespace()],
}


@pytest.mark.parametrize("case", NESTED)
def test_nested_things_are_taken_apart_and_put_together(case):
    thing, leaves = NESTED[case], []
    spec = flatten(thing, leaves)
    assert hash(spec) == hash(flatten(thing, []))
    assert not any(isinstance(leaf, (list, tuple, dict, types.SimpleNamespace)) for leaf in leaves)
    again = unflatten(spec, iter(leaves))
    assert type(again) is type(thing)
    assert again is not thing or thing == ()
    assert repr(again) == repr(thing)


def test_what_is_nested_otherwise_is_of_another_kind():
    x = torch.ones(2)
    things = [
        *([x], (x,), {"x": x}, {"y": x}, Batch(x), types.SimpleNamespace(x=x), argparse.Namespace(x=x), x, [[x]]),
        *({"a": x, "b": x}, {"b": x, "a": x}, Pair(x, x), (x, x), Frozen(x, True), Frozen(x, False)),
    ]
    keys = [Arguments().sort((thing,), {}).key for thing in things]
    assert len(set(keys)) == len(keys)


def key_of(*args, **kwargs):
    return Arguments().sort(args, kwargs).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2, 3), torch.ones(3, 2).t()),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(2), torch.ones(2, requires_grad=True)),
        (torch.ones(2), nn.Parameter(torch.ones(2), requires_grad=False)),
        (torch.ones(2), torch.ones(2, device="meta")),
        (1, True),
        (1, 1.0),
        (0, None),
        ("1", b"1"),
        (1, 2),
        (1.0, 2.0),
        (torch.float32, torch.float64),
    ],
)
def test_different_values_are_different_kinds(one, other):
    assert key_of(one) != key_of(other)
    assert key_of(one) == key_of(one)
    assert key_of(a=one) != key_of(one)


def test_tensors_of_the_same_shape_are_of_one_kind_and_inputs():
    one = Arguments().sort((torch.ones(2), 3), {"y": torch.zeros(1)})
    other = Arguments().sort((torch.zeros(2), 3), {"y": torch.ones(1)})
    assert one.key == other.key
    assert [t.tolist() for t in one.tensors] == [[1, 1], [0]]
    args, kwargs = one.filled([torch.full((2,), 5.0), torch.full((1,), 6.0)])
    assert (args[0].tolist(), args[1], kwargs["y"].tolist()) == ([5, 5], 3, [6])
    assert one.device == torch.device("cpu")


@pytest.mark.parametrize(
    "setting",
    [
        torch.no_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: pyro.validation_enabled(False),
        torch.inference_mode,
    ],
    ids=["no_grad", "autocast", "validation", "inference"],
)
def test_settings_are_part_of_the_kind(setting):
    outside = key_of(1)
    with setting():
        assert key_of(1) != outside
    assert key_of(1) == outside


def test_default_dtype_is_part_of_the_kind():
    outside = key_of(1)
    torch.set_default_dtype(torch.float64)
    try:
        assert key_of(1) != outside
    finally:
        torch.set_default_dtype(torch.float32)


# --- numbers that change --------------------------------------------------------------------------------------------------


def test_a_float_becomes_a_tensor_once_it_has_changed():
    arguments = Arguments()
    first, again = arguments.sort((torch.ones(1), 0.5), {}), arguments.sort((torch.ones(1), 0.5), {})
    assert first.key == again.key
    assert first.places == [0]
    changed = [arguments.sort((torch.ones(1), value), {}) for value in (0.6, 0.7, 0.5)]
    assert {call.key for call in changed} == {changed[0].key} != {first.key}
    assert [call.places for call in changed] == [[0, 1]] * 3
    assert [call.tensors[1].item() for call in changed] == pytest.approx([0.6, 0.7, 0.5])
    assert changed[0].tensors[1].dtype == torch.float32


def test_floats_are_told_apart_by_their_place():
    arguments = Arguments()
    calls = [arguments.sort((value, 1.0), {"c": 2.0}) for value in (0.1, 0.2)]
    assert calls[1].places == [0]
    assert Arguments().sort((0.1, 1.0), {"c": 2.0}).places == []


def test_a_number_that_is_not_a_number_does_not_change():
    arguments = Arguments()
    keys = [arguments.sort((torch.nan,), {}) for _ in range(3)]
    assert len({call.key for call in keys[1:]}) == 1


def scaled(x, beta, options=None):
    return (x * beta).sum()


def test_a_float_that_is_annealed_needs_one_graph():
    note, times = counter()

    def noted(x, beta):
        note()
        return (x * beta).sum()

    step = Replay(noted, (noted,), compile="graph")
    ran = []
    for i in range(30):
        assert step(torch.ones(2), 0.01 * i).item() == pytest.approx(0.02 * i)
        ran.append(times())
    assert step.how == "captured"
    assert ran[-15:] == ran[-1:] * 15


@pytest.mark.parametrize(("kind", "word"), [(int, "a whole number"), (str, "a text"), (lambda i: b"%d" % i, "a bytes")])
def test_other_values_that_keep_changing_are_refused_with_a_message(kind, word, caplog):
    step = Replay(lambda x, k: x.sum(), (scaled,), compile="graph", what="the test")
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for i in range(policy.MOST_VALUES):
            assert step(torch.ones(2), kind(i)).item() == 2
        assert not caplog.records
        for i in range(policy.MOST_VALUES, policy.MOST_VALUES + 3):
            assert step(torch.ones(2), kind(i)).item() == 2
    assert len(caplog.records) == 1
    assert f"argument 2, {word}, has had {policy.MOST_VALUES + 1} values" in caplog.text
    assert "pass a tensor or a float" in caplog.text
    assert step.how == "eager (not captured)"


def test_a_whole_number_of_few_values_has_a_graph_for_each():
    def powers(x, k):
        return (x**k).sum()

    step = Replay(powers, (powers,), compile="graph")
    for i in range(40):
        assert step(torch.tensor([2.0, 1.0]), i % 3).item() == 2 ** (i % 3) + 1
    assert step.how == "captured"


@pytest.mark.parametrize(
    "thing", [object(), {1, 2}, iter([1]), collections.deque([1]), slice(1)], ids=lambda thing: type(thing).__name__
)
def test_an_argument_whose_changes_cannot_be_seen_is_named(thing, caplog):
    with pytest.raises(Unkeyed, match=f"an argument is a {type(thing).__name__}, whose changes cannot be seen"):
        Arguments().sort((thing,), {})
    step = Replay(lambda x, thing: x.sum(), (scaled,), compile="graph")
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for _ in range(3):
            assert step(torch.ones(2), thing).item() == 2
    assert len(caplog.records) == 1


# --- arguments that are watched -----------------------------------------------------------------------------------------


def test_modules_and_functions_are_watched():
    layer, other = nn.Dropout(0.5), nn.Identity()
    factor = [2.0]

    def double(x):
        return x * factor[0]

    def function(x, module, f):
        return f(module(x)).sum()

    step = Replay(function, (function,), compile="graph")
    layer.eval()
    for _ in range(7):
        assert step(torch.ones(2), layer, double).item() == 4
    assert step.how == "captured", step.refusal
    factor[0] = 3.0
    assert step(torch.ones(2), layer, double).item() == 6
    layer.train()
    torch.manual_seed(0)
    got = [step(torch.ones(100), layer, double).item() for _ in range(3)]
    assert len(set(got)) > 1
    assert step(torch.ones(2), other, double).item() == 6
    assert step(torch.ones(2), other, lambda x: x).item() == 2


@pytest.mark.parametrize("way", ["batch.x", "options['x']", "namespace.x"])
def test_records_are_read_at_each_call(way):
    def function(batch):
        x = batch["x"] if isinstance(batch, dict) else batch.x
        return (x * 2).sum()

    make = {"batch.x": Batch, "options['x']": lambda x: {"x": x}, "namespace.x": lambda x: types.SimpleNamespace(x=x)}[
        way
    ]
    step = Replay(function, (function,), compile="graph")
    for i in range(15):
        assert step(make(torch.full((2,), float(i)))).item() == 4 * i
    assert step.how == "captured", step.refusal


def test_a_record_whose_fields_change_is_of_another_kind():
    record = types.SimpleNamespace(x=torch.ones(2), k=1)

    def function(record):
        return (record.x * record.k).sum()

    step = Replay(function, (function,), compile="graph")
    for _ in range(8):
        assert step(record).item() == 2
    record.k = 5
    for _ in range(8):
        assert step(record).item() == 10
    assert step.how == "captured"


def test_arguments_that_the_function_changes_are_left_to_it(caplog):
    def function(parts):
        parts.append(parts[-1] + 1)
        return parts[-1].sum()

    step = Replay(function, (function,), compile="graph")
    parts = [torch.zeros(1)]
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        assert [step(parts).item() for _ in range(8)] == list(range(1, 9))
    assert "it changes its arguments" in caplog.text
    assert len(parts) == 9


def test_a_batch_that_the_function_writes_to_is_written_to():
    def function(x):
        x.add_(1)
        return x.sum()

    step = Replay(function, (function,), compile="graph")
    x = torch.zeros(2)
    assert [step(x).item() for _ in range(14)] == [2.0 * i for i in range(1, 15)]
    assert x.tolist() == [14, 14]


DATA = torch.tensor([1.0, 2.0])


def test_a_tensor_that_the_program_reaches_too_is_not_taken_for_the_argument():
    def function(x):
        return (x * DATA).sum()

    step = Replay(function, (function,), compile="graph")
    for _ in range(8):
        assert step(DATA).item() == 5
    assert step.how == "captured"
    assert step(torch.tensor([1.0, 1.0])).item() == 3


def test_arguments_that_are_one_tensor_at_first_may_be_two_later():
    def function(x, y):
        return (x * y).sum()

    step = Replay(function, (function,), compile="graph")
    for _ in range(8):
        assert step(DATA, DATA).item() == 5
    assert step.how == "captured"
    assert step(DATA, torch.tensor([1.0, 1.0])).item() == 3


def test_a_number_that_changes_is_as_exact_as_a_number():
    def function(x, beta):
        return (x * beta).sum()

    step, x = Replay(function, (function,), compile="graph"), torch.ones(2, dtype=torch.float64)
    for i in range(10):
        assert step(x, 0.1 * i).item() == pytest.approx(0.2 * i, rel=1e-12)
    assert step.how == "captured", step.refusal


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_run_eagerly():
    step = Replay(lambda x: x.to_padded_tensor(0.0).sum(), (scaled,), compile="graph")
    for _ in range(8):
        assert step(torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])).item() == 5


def test_sparse_tensors_are_arguments_like_others():
    step = Replay(lambda x: x.to_dense().sum(), (scaled,), compile="graph")
    for i in range(15):
        x = torch.zeros(5)
        x[: i % 4] = 1.0
        assert step(x.to_sparse()).item() == i % 4
