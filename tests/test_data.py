"""Data come out once each, scaled and binarised as asked, whatever they came in; bad input is refused."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyro_vae.data import Examples, Splits, Stream, as_examples, load, reading
from pyro_vae.errors import InputError


class Items(Dataset):
    """A map-style data set over a list of items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Endless(IterableDataset):
    def __iter__(self):
        return iter(torch.rand(5, 2))


def greys(n: int = 23, *event_shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, *(event_shape or (1, 4, 4))), dtype=torch.uint8)


def everything(examples: Examples | Stream, batch_size: int = 5, order=None) -> torch.Tensor:
    return torch.cat([batch[0] for _, batch in examples.batches(batch_size, order=order)])


def held_and_streamed(x, **options) -> list[Examples | Stream]:
    labelled = Items([(row, i % 3) for i, row in enumerate(x)])
    return [
        as_examples(x, **options),
        as_examples(labelled, **options),
        as_examples(labelled, max_bytes=0, **options),
    ]


# --- batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_every_datum_is_yielded_once(batch_size):
    x = torch.arange(23.0)[:, None]
    order = torch.randperm(23)
    for examples in held_and_streamed(x):
        for wanted in (None, order, order[:7], order[:0]):
            pairs = list(examples.batches(batch_size, order=wanted))
            index = torch.cat([i for i, _ in pairs]) if pairs else torch.empty(0)
            assert index.tolist() == (torch.arange(23) if wanted is None else wanted).tolist()
            assert all(torch.equal(batch[0], x[i]) for i, batch in pairs)
            assert all(len(i) == batch_size for i, _ in pairs[:-1])


def test_one_worker_process_reads_the_same():
    x = greys()
    stream = Stream(Items(list(x)), num_workers=1)
    assert torch.equal(everything(stream), x / 255)


def test_indices_of_every_kind_pick_the_same_data():
    x = torch.rand(6, 2)
    examples = Examples(x, torch.arange(6))
    mask = torch.tensor([False, True, True, False, False, False])
    for index in (slice(1, 3), torch.tensor([1, 2]), [1, 2], mask):
        assert torch.equal(examples.batch(index)[0], x[1:3])
        taken = examples.take(index)
        assert torch.equal(taken.x, x[1:3])
        assert taken.y.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8, torch.int64, torch.bool])
def test_batches_are_floating(dtype):
    x = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    (plain,) = Examples(x).batch(slice(None))
    (scaled,) = Examples(x, levels=4).batch(slice(None))
    assert plain.dtype == (dtype if dtype.is_floating_point else torch.get_default_dtype())
    assert scaled.dtype == torch.get_default_dtype()
    assert scaled.tolist() == [[0, 0.25], [0.25, 0]]
    (static,) = Examples(x, binarize="static").batch(slice(None))
    assert static.dtype == plain.dtype
    assert torch.equal(static, plain)


def test_bytes_are_pixels_unless_they_are_binary():
    assert everything(as_examples(torch.tensor([[0, 255]], dtype=torch.uint8))).tolist() == [[0, 1]]
    assert everything(as_examples(torch.tensor([[0, 1]], dtype=torch.uint8))).tolist() == [[0, 1]]
    assert everything(Examples(torch.tensor([[0, 255]], dtype=torch.uint8))).tolist() == [[0, 255]]
    binary = Items([torch.tensor([0, 1], dtype=torch.uint8)] * 3)
    assert everything(as_examples(binary)).max() == everything(as_examples(binary, max_bytes=0)).max() == 1


def test_labels_stay_out_of_batches_and_conditions_stay_in():
    x, c, y = torch.rand(7, 3), torch.arange(7), torch.arange(7)
    assert len(Examples(x, y).batch(slice(2))) == 1
    for examples in (as_examples((x, c)), as_examples([x.numpy(), c.numpy()]), Examples(x, extras=[c])):
        batch = examples.batch(torch.tensor([4, 2]))
        assert torch.equal(batch[0], x[[4, 2]])
        assert batch[1].tolist() == [4, 2]
        assert batch[1].dtype == torch.int64
    for source in (TensorDataset(x, y), Items(list(zip(x, y.tolist(), strict=True)))):
        assert as_examples(source).y.tolist() == y.tolist()
        assert [len(batch) for _, batch in as_examples(source).batches(7)] == [1]
        kept = as_examples(source, keep=2)
        assert kept.y is None
        assert [batch[1].tolist() for _, batch in kept.batches(7)] == [y.tolist()]
    for size, source in itertools.product((0, 10**6), [Items(list(zip(x, y, strict=True)))]):
        examples = as_examples(source, max_bytes=size, keep=2)
        assert [batch[1].tolist() for _, batch in examples.batches(7)] == [y.tolist()]


def test_device_and_memory():
    examples = Examples(greys(), levels=255, binarize="static")
    assert examples.to("cpu").device == examples.device == torch.device("cpu")
    assert examples.nbytes == 2 * 23 * 16
    assert examples.to("meta").batch(slice(3))[0].device.type == "meta"
    assert as_examples(examples, device="meta").device.type == "meta"
    assert "23 x (1, 4, 4)" in repr(examples)
    assert "static" in repr(Stream(Items(list(greys())), binarize="static"))


# --- binarisation ------------------------------------------------------------------------------------------


def test_threshold():
    x = torch.tensor([[0.0, 0.5, 0.500001, 1.0]])
    for examples in held_and_streamed(x, binarize="threshold"):
        assert everything(examples).tolist() == [[0, 0, 1, 1]]


def test_dynamic_is_drawn_anew_with_the_right_mean():
    """Each of 400 means of 2,000 draws within 5 standard errors: a false alarm once in about 4,000 seeds."""
    x = torch.linspace(0, 1, 400)[None]
    for examples in held_and_streamed(x, binarize="dynamic"):
        draws = torch.stack([everything(examples)[0] for _ in range(2 if isinstance(examples, Stream) else 2000)])
        assert not torch.equal(draws[0], draws[1])
        assert set(draws.unique().tolist()) == {0, 1}
        error = 5 * (x * (1 - x) / len(draws)).sqrt()[0]
        if len(draws) > 2:
            assert ((draws.mean(0) - x[0]).abs() <= error).all()
        assert (draws[:, 0] == 0).all()
        assert (draws[:, -1] == 1).all()


def test_dynamic_follows_the_global_seed():
    examples = Examples(torch.rand(3, 5), binarize="dynamic")
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(everything(examples))
    assert torch.equal(*draws)


def test_static_depends_on_seed_and_datum_alone():
    x, order = greys(40), torch.randperm(40)
    before = torch.get_rng_state()
    once = everything(Examples(x, levels=255, binarize="static", seed=4))
    assert torch.equal(torch.get_rng_state(), before)
    for examples in held_and_streamed(x, binarize="static", seed=4):
        assert torch.equal(everything(examples, 7), once)
        assert torch.equal(everything(examples, 3, order), once[order])
        assert torch.equal(everything(examples.take(order)), once[order])
        assert torch.equal(
            everything(examples.with_binarize("none").take(order).with_binarize("static", 4)), once[order]
        )
        assert not torch.equal(everything(examples.with_binarize("static", 5)), once)
        assert torch.equal(everything(examples.with_binarize("none")), x / 255)
    in_order = as_examples(DataLoader(x, 6), binarize="static", seed=4)
    assert torch.equal(everything(in_order), once)


def test_static_is_fair():
    """Means over data and over pixels within 5 standard errors: a false alarm once in about 8,000 seeds."""
    bits = everything(Examples(torch.full((2000, 100), 0.3), binarize="static", seed=1), 500)
    for dim in (0, 1):
        error = 5 * math.sqrt(0.3 * 0.7 / bits.shape[dim])
        assert ((bits.mean(dim) - 0.3).abs() < error).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a CUDA device with the CPU; none is here")
def test_static_is_the_same_on_cuda():
    x = greys(40)
    there = as_examples(x, device="cuda")
    assert torch.equal(everything(there.with_binarize("static")).cpu(), everything(as_examples(x, binarize="static")))
    assert torch.equal(everything(there).cpu(), everything(as_examples(x)))
    order = torch.randperm(40)
    assert torch.equal(everything(there, 7, order).cpu(), x[order] / 255)
    stream = Stream(Items(list(x)), device="cuda", num_workers=1)
    assert torch.equal(everything(stream).cpu(), x / 255)


# --- forms of data -----------------------------------------------------------------------------------------


def test_held_and_streamed_data_agree(caplog):
    from PIL import Image

    pictures = greys(9, 3, 4, 5)
    images = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures]
    for items in (list(pictures), [p.numpy() for p in pictures], images):
        for binarize in ("none", "threshold", "static"):
            with caplog.at_level(logging.INFO, "pyro_vae"):
                held = as_examples(Items(items), binarize=binarize)
                streamed = as_examples(Items(items), binarize=binarize, max_bytes=100)
            assert "held" in caplog.records[-2].message
            assert "streamed" in caplog.records[-1].message
            assert isinstance(held, Examples)
            assert isinstance(streamed, Stream)
            assert held.event_shape == streamed.event_shape == (3, 4, 5)
            assert torch.equal(everything(held), everything(streamed))
        assert torch.equal(everything(as_examples(Items(items))), pictures / 255)


def test_a_loader_keeps_its_own_batches_and_its_length_is_known():
    x = torch.rand(23, 2)
    plain = as_examples(DataLoader(TensorDataset(x, torch.arange(23)), batch_size=6))
    assert len(plain) == 23
    assert torch.equal(everything(plain, 99), x)
    assert [len(batch[0]) for _, batch in plain.batches(99)] == [6, 6, 6, 5]
    shuffled = as_examples(DataLoader(TensorDataset(x), batch_size=6, shuffle=True, drop_last=True), binarize="dynamic")
    assert len(shuffled) == len(everything(shuffled)) == 18
    assert shuffled.event_shape == (2,)


def test_making_a_stream_leaves_the_random_state_alone():
    x = greys()
    before = torch.get_rng_state()
    Stream(DataLoader(x, batch_size=2, shuffle=True))
    Stream(Items(list(x)), binarize="static")
    as_examples(Items(list(x)), binarize="static")
    load("digits", binarize="static")
    assert torch.equal(torch.get_rng_state(), before)


def test_arrays_of_every_kind():
    x = np.arange(12.0).reshape(4, 3)
    fixed = x.copy()
    fixed.setflags(write=False)
    kinds = ("f8", ">f4", "f2", "i2", "u2", ">i8", "u4")
    for array in (fixed, x[::-1][::-1], np.asfortranarray(x), *(x.astype(kind) for kind in kinds)):
        (batch,) = as_examples(array).batch(slice(None))
        assert batch.tolist() == x.tolist()
        assert batch.dtype == (torch.float16 if array.dtype == "f2" else torch.float32)


def test_examples_pass_through():
    examples = Examples(torch.rand(5, 2), binarize="dynamic")
    assert as_examples(examples).binarize == "dynamic"
    assert as_examples(examples, binarize="none").binarize == "none"
    assert examples.binarize == "dynamic"
    assert as_examples("digits").event_shape == (1, 8, 8)


# --- named sets --------------------------------------------------------------------------------------------


def test_digits():
    splits = load("digits")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1293, 144, 360]
    assert isinstance(splits, Splits)
    assert splits.event_shape == (1, 8, 8)
    x = torch.cat([everything(part, 500) for part in (splits.train, splits.validation, splits.test)])
    assert (x.min(), x.max()) == (0, 1)
    from sklearn.datasets import load_digits

    assert x.sum().item() * 16 == load_digits().images.sum()
    assert torch.bincount(splits.train.y, minlength=10).min() > 100
    assert everything(load("digits", pixels="integer").test, 500).max() == 16
    assert torch.equal(everything(load("digits", seed=3).test, 500), everything(splits.test, 500))
    assert load("digits", size=12).event_shape == (1, 12, 12)
    bits = load("digits", binarize="static", seed=3).test
    assert set(everything(bits).unique().tolist()) == {0, 1}


def test_mnist_is_read_at_once(mnist_root, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "__getitem__", lambda *_: pytest.fail("an image was read by itself"))
    splits = load("mnist", root=mnist_root, download=False)
    assert len(splits.train) + len(splits.validation) == 60_000
    assert (len(splits.validation), len(splits.test)) == (6_000, 10_000)
    assert splits.train.x.dtype == torch.uint8
    assert splits.event_shape == (1, 28, 28)
    assert splits.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    assert everything(splits.test, 5000).mean().item() == pytest.approx(0.1325, abs=1e-4)


@pytest.mark.parametrize("kind", ["hwc", "pictures"])
def test_other_torchvision_sets(kind, monkeypatch, tmp_path):
    """Any class with torchvision's usual arguments will do, with pictures in an array or one by one."""
    from PIL import Image
    from torchvision import datasets

    class Invented(Dataset):
        def __init__(self, root, split="train", transform=None, download=False):
            if not download:
                raise RuntimeError("Dataset not found.")
            self.transform, self.labels = transform, [1] * (30 if split == "train" else 7)
            pictures = np.full((len(self.labels), 6, 6, 3), 51, dtype=np.uint8)
            if kind == "hwc":
                self.data = pictures
            else:
                self.files = pictures

        def __len__(self):
            return len(self.labels)

        def __getitem__(self, i):
            return self.transform(Image.fromarray(self.files[i])), self.labels[i]

    monkeypatch.setattr(datasets, "Invented", Invented, raising=False)
    monkeypatch.setattr(datasets, "__all__", (*datasets.__all__, "Invented"))
    splits = load("invented", root=tmp_path, size=4)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [27, 3, 7]
    assert splits.event_shape == (3, 4, 4)
    assert everything(splits.test).unique().tolist() == [pytest.approx(0.2)]
    assert splits.test.y.tolist() == [1] * 7


@pytest.mark.parametrize(("name", "kind"), [("emnist", "EMNIST"), ("qmnist", "QMNIST")])
def test_oddities_of_torchvision_are_put_right(name, kind, monkeypatch, tmp_path):
    """EMNIST's letters lie on their side, and QMNIST has eight columns of labels; made-up files stand in."""
    from torchvision import datasets

    class Invented(Dataset):
        def __init__(self, root, train=True, transform=None, download=False, split=None):
            self.data = torch.zeros(20, 3, 3, dtype=torch.uint8)
            self.data[:, 0, 2] = 255
            self.targets = torch.arange(20) if kind == "EMNIST" else torch.arange(20)[:, None].repeat(1, 8)

        def __len__(self):
            return len(self.data)

    monkeypatch.setattr(datasets, kind, Invented)
    splits = load(name, root=tmp_path, download=False)
    row, column = (2, 0) if kind == "EMNIST" else (0, 2)
    assert everything(splits.test)[:, 0, row, column].tolist() == [1] * 20
    assert splits.test.y.tolist() == list(range(20))


# --- files and folders -------------------------------------------------------------------------------------


def written(path, x, y):
    """The file at `path` with data x (N, D) and labels y."""

    def parquet():
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"a": x[:, 0], "label": y, "b": x[:, 1]}), path)

    # as pandas writes it, with an index column that has no name
    lines = [",a,label,b", *(f"{i},{a},{label},{b}" for i, ((a, b), label) in enumerate(zip(x, y, strict=True)))]
    {
        ".npy": lambda: np.save(path, x),
        ".npz": lambda: np.savez(path, x=x, y=y),
        ".pt": lambda: torch.save((torch.from_numpy(x), torch.from_numpy(y)), path),
        ".csv": lambda: path.write_text("\n".join(lines)),
        ".parquet": parquet,
    }[path.suffix]()
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".csv", ".parquet"])
def test_files(tmp_path, suffix):
    x = np.arange(60, dtype=np.float32).reshape(30, 2)
    label = {"label": "label"} if suffix in (".csv", ".parquet") else {}
    splits = load(written(tmp_path / f"some{suffix}", x, np.arange(30)), **label)
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [24, 3, 3]
    whole = torch.cat([everything(part) for part in parts])
    assert torch.equal(whole[whole[:, 0].argsort()], torch.from_numpy(x))
    if suffix != ".npy":
        assert all(torch.equal(part.y * 2, everything(part)[:, 0].long()) for part in parts)


def test_named_parts_of_a_file_are_respected(tmp_path):
    train, test = greys(20, 3).numpy(), greys(6, 3).numpy()
    np.savez(tmp_path / "a.npz", x_train=train, y_train=np.arange(20), x_test=test, y_test=np.arange(6))
    np.savez(tmp_path / "b.npz", train_images=train, test_images=test, val_images=test)
    torch.save({"train": torch.from_numpy(train), "test": torch.from_numpy(test)}, tmp_path / "c.pt")
    for name, validation in (("a.npz", 2), ("b.npz", 6), ("c.pt", 2)):
        splits = load(tmp_path / name)
        assert torch.equal(everything(splits.test), torch.from_numpy(test) / 255)
        assert len(splits.validation) == validation
    assert load(tmp_path / "a.npz").test.y.tolist() == list(range(6))
    assert everything(load(tmp_path / "a.npz", pixels="integer").test).max() > 1
    np.savez(tmp_path / "one.npz", anything=train)
    assert load(tmp_path / "one.npz").event_shape == (3,)


def test_lengths_in_a_file_go_with_their_sequences(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 5, 2)).astype("float32")
    lengths = np.arange(40) % 5 + 1
    np.savez(tmp_path / "some.npz", x=x, lengths=lengths, y=np.arange(40))
    np.savez(tmp_path / "parts.npz", x=x, lengths=lengths, x_test=x[:4], test_lengths=lengths[:4])
    splits = load(tmp_path / "some.npz")
    for part in (splits.train, splits.validation, splits.test):
        batch, its_lengths = part.batch(slice(None))
        assert torch.equal(its_lengths, part.y % 5 + 1)
        there = torch.arange(5) < its_lengths[:, None]
        assert torch.equal(batch[there], torch.from_numpy(x)[part.y][there])
    assert load(tmp_path / "parts.npz").test.extras[0].tolist() == [1, 2, 3, 4]
    np.savez(tmp_path / "one.npz", x=x, y_lengths=lengths)  # which is no known name
    assert not load(tmp_path / "one.npz").train.extras


def test_what_a_file_holds_beyond_an_end_is_not_looked_at(tmp_path):
    lengths = torch.arange(40) % 4 + 1
    x = (torch.rand(40, 4, 2, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    beyond = (torch.arange(4) >= lengths[:, None])[..., None]
    torch.save({"x": x.masked_fill(beyond, torch.nan), "lengths": lengths}, tmp_path / "a.pt")
    torch.save({"x": x.masked_fill(beyond, -1.0), "lengths": lengths}, tmp_path / "b.pt")
    a, b = (load(tmp_path / name).train for name in ("a.pt", "b.pt"))
    assert torch.equal(a.x, b.x)
    assert set(a.x.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("text", "label", "shape", "labels"),
    [
        ("1,2\n3,4\n5,6\n", None, (2,), None),
        ("0,1\n1,2\n3,4\n5,6\n", None, (2,), None),
        ("a,b\n1,2\n3,4\n5,6\n", None, (2,), None),
        ("a,target\n1,2\n3,4\n5,6\n", None, (2,), None),
        ("a,target\n1,2\n3,4\n5,6\n", "target", (1,), [2, 4, 6]),
        ('"a","class"\n1,"rose"\n2,"iris"\n3,"rose"\n', "class", (1,), [0, 1, 1]),
    ],
)
def test_csv_headers(tmp_path, text, label, shape, labels):
    (tmp_path / "t.csv").write_text("\ufeff" + text, encoding="utf-8")
    splits = load(tmp_path / "t.csv", label=label)
    assert splits.event_shape == shape
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [1, 1, 1]
    assert labels is None or sorted(int(part.y) for part in parts) == labels


def pictures(folder, names, size=(6, 4), mode="RGB"):
    from PIL import Image

    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 10 * (i + 1) if mode == "L" else (10 * (i + 1),) * 3).save(path)
    return folder


def test_folder_with_and_without_classes(tmp_path):
    flat = load(pictures(tmp_path / "flat", [f"{i}.png" for i in range(10)] + [".hidden.png"]))
    assert flat.event_shape == (3, 4, 6)
    assert [len(part) for part in (flat.train, flat.validation, flat.test)] == [8, 1, 1]
    assert flat.train.y is None
    assert everything(flat.train).max() <= 100 / 255
    named = load(pictures(tmp_path / "named", [f"{c}/{i}.bmp" for c in "ab" for i in range(5)], mode="L"))
    parts = (named.train, named.validation, named.test)
    assert named.event_shape == (1, 4, 6)
    seen = {
        (int(v * 255 / 10 + 0.5), int(y)) for p in parts for v, y in zip(everything(p)[:, 0, 0, 0], p.y, strict=True)
    }
    assert seen == {(i + 1, i // 5) for i in range(10)}
    split = load(pictures(tmp_path / "split", [f"{part}/a/{i}.png" for part in ("train", "test") for i in range(4)]))
    assert [len(part) for part in (split.train, split.validation, split.test)] == [3, 1, 4]
    assert split.train.y.tolist() == [0, 0, 0]


def test_folder_of_mixed_sizes(tmp_path):
    folder = pictures(tmp_path, ["a.png", "b.png", "c.png"])
    pictures(tmp_path, ["d.png"], size=(5, 5), mode="L")
    with pytest.raises(InputError, match=r"d\.png is L \(5, 5\), but .*a\.png is RGB \(6, 4\).*size="):
        load(folder)
    assert load(folder, size=3).event_shape == (3, 3, 3)


def test_a_folder_too_large_to_hold_is_streamed(tmp_path, monkeypatch):
    folder = pictures(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in range(10)])
    held = load(folder, binarize="static")
    monkeypatch.setattr(reading, "_free_bytes", lambda device: 100)
    streamed = load(folder, binarize="static")
    assert isinstance(streamed.train, Stream)
    for part in ("train", "validation", "test"):
        one, other = getattr(held, part), getattr(streamed, part)
        other.num_workers = 0
        assert torch.equal(everything(one), everything(other))


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Examples([1.0]), "x must be a tensor .* not a list"),
        (lambda: Examples(torch.rand(0, 3)), "no data"),
        (lambda: Examples(torch.rand(3, 2).to(torch.complex64)), "real numbers"),
        (lambda: Examples(torch.rand(3, 2), torch.arange(2)), r"y has shape \(2,\), but x holds 3"),
        (lambda: Examples(torch.rand(3, 2), levels=0), "levels=0 must be"),
        (lambda: Examples(torch.rand(3, 2), binarize="statc"), "statc.*Did you mean 'static'"),
        (
            lambda: as_examples((torch.rand(3, 2), torch.rand(4))),
            r"extras\[0\] has shape \(4,\), but x holds 3",
        ),
        (lambda: as_examples(3), "Data can't be a int; wanted: a tensor"),
        (lambda: as_examples({"x": 1}), "Data can't be a dict"),
        (lambda: as_examples(()), "empty tuple"),
        (lambda: as_examples(np.array(["a", "b"])), "no real numbers"),
        (lambda: as_examples(Items([])), "Items is empty"),
        (lambda: as_examples(Items([{"x": 1}])), "a dict is no datum"),
        (lambda: as_examples(Items([torch.rand(2)] * 2), keep=2), "keep=2, but an item .* has 1"),
        (lambda: as_examples(Items([torch.rand(2), torch.rand(3)])), r"Datum 1 is \(3,\).*datum 0 is \(2,\)"),
        (lambda: as_examples(Endless()), "wrap it in a DataLoader"),
        (lambda: as_examples(DataLoader(Endless())), "Endless has no length"),
        (lambda: as_examples(DataLoader(torch.rand(3, 2), batch_size=None)), "batch_size=None"),
        (lambda: as_examples(DataLoader(torch.rand(3, 2), batch_size=4, drop_last=True)), "yields no data"),
        (lambda: as_examples(DataLoader(torch.rand(3, 2), shuffle=True), binarize="static"), "shuffle=False"),
        (lambda: as_examples(DataLoader(torch.rand(3, 2))).take([1]), "pass its Dataset"),
        (lambda: Examples(torch.rand(3, 2)).take([]), "no data left"),
        (lambda: Stream(Items([torch.rand(2)])).take([]), "no data left"),
        (lambda: list(Examples(torch.rand(3, 2)).batches(0)), "batch_size=0 must be"),
        (lambda: load("fashion_mnits"), "Did you mean 'fashion_mnist'.*path of a file or folder"),
        (lambda: load("digits", pixels="byte"), "pixels='byte'"),
        (lambda: load("digits", size=0), "size=0"),
        (lambda: load("digits", pixels="integer", binarize="dynamic"), r"values in \[0, 1\]"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_found(value):
    x = torch.rand(20, 2, 3)
    Examples(x).check_finite()
    Examples(greys()).check_finite()
    x[13, 1, 2] = value
    with pytest.raises(InputError, match=rf"x holds {value} at position \(1, 2\) of datum 13"):
        Examples(x).check_finite()
    with pytest.raises(InputError, match=r"extras\[0\] holds .* of datum 13"):
        Examples(torch.rand(20), extras=[x]).check_finite()
    for source in (Items(list(x)), DataLoader(x, batch_size=4)):
        with pytest.raises(InputError, match=r"at position \(1, 2\) of datum 13"):
            everything(Stream(source, num_workers=0))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("binarize", ["threshold", "static", "dynamic"])
def test_values_outside_the_unit_interval_are_not_binarised(binarize, value):
    x = torch.rand(20, 4)
    x[7, 3] = value
    with pytest.raises(InputError, match=rf"binarize='{binarize}'.*x holds {value} at position \(3,\) of datum 7"):
        Examples(x, binarize=binarize)
    with pytest.raises(InputError, match="of datum 7"):
        everything(Stream(Items(list(x)), binarize=binarize, num_workers=0))
    with pytest.raises(InputError, match=r"x holds 17 .*datum 0 \(before it is divided by levels=16\)"):
        Examples(torch.full((2, 2), 17), levels=16, binarize=binarize)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"junk", r"a\.npy can't be read as \.npy"),
        ("a.npz", b"", r"a\.npz can't be read as \.npz"),
        ("a.pt", b"junk", r"a\.pt can't be read as \.pt"),
        ("a.parquet", b"junk", r"a\.parquet can't be read as \.parquet"),
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", b"a,b\n", r"a\.csv has a header, but no rows"),
        ("a.csv", b"1,2\n3\n", r"a\.csv, line 2: there are 1 cells, but 2 columns"),
        ("a.csv", b"a\n1\n2\n3\n4\nx\n", r"a\.csv: column 'a', row 4: 'x' stands among numbers"),
        ("a.csv", b"1,2\n3,4\n", r"a\.csv holds 2 data; wanted: one at least for each of train"),
        ("a.xyz", b"", r"no kind of file known here; wanted: \.npy"),
        ("a/b.png", b"junk", r"b\.png can't be read as a picture"),
        ("a/b.txt", b"", "holds no pictures"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(path.parent if "/" in name else path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_bad_arrays_in_files_are_named(tmp_path):
    x = np.random.default_rng(0).random((9, 2))
    cases = {
        "no.npz": ({"a": x, "b": x}, "holds a, b; wanted: one named x"),
        "two.npz": ({"x": x, "data": x}, "two of them could be x of the train part"),
        "test.npz": ({"x_test": x}, "has no training data, just test"),
        "shape.npz": ({"x_train": x, "x_test": x[:, :1]}, r"differ in shape: train \(2,\), test \(1,\)"),
        "label.npz": ({"x": x, "y": np.arange(3)}, r"y has shape \(3,\), but x holds 9"),
        "short.npz": ({"x": x, "lengths": np.ones(3)}, r"lengths has shape \(3,\), but x holds 9 sequences"),
        "column.npz": ({"x": x, "lengths": np.ones((9, 1))}, r"lengths has shape \(9, 1\)"),
        "long.npz": ({"x": x, "lengths": np.full(9, 3)}, r"lengths\[0\] = 3 must be a whole number from 1 to T=2"),
        "flat.npz": ({"x": x[:, 0], "lengths": np.ones(9)}, r"x has shape \(9,\), but with lengths"),
        "part.npz": ({"x": x, "lengths": np.ones(9), "x_test": x}, "holds lengths, but none for the test part"),
    }
    for name, (arrays, message) in cases.items():
        np.savez(tmp_path / name, **arrays)
        with pytest.raises(InputError, match=message):
            load(tmp_path / name)
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"object\.npy can't be read"):
        load(tmp_path / "object.npy")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "code.pt")
    with pytest.raises(InputError, match=r"code\.pt can't be read as \.pt"):
        load(tmp_path / "code.pt")
    np.save(tmp_path / "flat.npy", x)
    with pytest.raises(InputError, match="size=3 is for pictures"):
        load(tmp_path / "flat.npy", size=3)


def test_a_corrupt_picture_among_good_ones_is_named(tmp_path):
    folder = pictures(tmp_path, [f"{i}.png" for i in range(4)], size=(40, 40))
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) - 30])
    with pytest.raises(InputError, match=r"2\.png can't be read as a picture"):
        load(folder)


def test_a_path_that_is_not_there(tmp_path):
    for name in ("missing.npy", "missing", "some.csv"):
        with pytest.raises(InputError, match="There is no file or folder .*" + name):
            load(tmp_path / name)


def test_a_missing_torchvision_set_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    for name in ("mnist", "usps", "cifar10", "svhn", "stl10", "omniglot", "celeba", "emnist", "qmnist"):
        with pytest.raises(InputError, match=f"{name} can't be read from {tmp_path} .*download=True") as caught:
            load(name, download=False)
        assert "\n" not in str(caught.value)


def test_torchvision_that_cannot_be_imported(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match="pip install torchvision"):
        load("mnist")
    assert len(load("digits").train) == 1293
