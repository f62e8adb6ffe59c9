"""Bach's chorales under a deep Markov model, with the sizes of Pyro's tutorial; prints nats per time slice.

Wants the file with the JSB chorales of Boulanger-Lewandowski et al. (2012) as JSON, {"train": [...], "valid": [...],
"test": [...]}, each part a list of chorales, each chorale a list of slices, each slice a list of MIDI notes, 21 to 108.
Their "JSB Chorales.pickle" becomes that, in a Python that you trust with a pickle, by

    json.dump(pickle.load(open("JSB Chorales.pickle", "rb")), open("jsb.json", "w"), default=int)

Pyro's tutorial reports 6.87, 6.82 and 6.80 nats per slice (the negative ELBO) with 0, 1 and 2 flow steps on the guide.
Different here: the guide's network is a GRU without dropout, a flow's context sees the sequence too (Pyro's does not),
the gradient's norm is clipped where Pyro clips its entries, and the best epoch by the validation ELBO is reported.

    python examples/jsb_dmm.py --data jsb.json --flows 1 --out runs/jsb
"""

import argparse
import functools
import json
from pathlib import Path

import pyro
import torch

from pyro_vae import elbo_terms, fit, guides, log_likelihood, networks, objectives
from pyro_vae.models import DeepMarkovModel
from pyro_vae.models.transitions import Gated

LOWEST, KEYS = 21, 88  # the piano's keys by MIDI number
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", required=True, help="the JSON file described above")
parser.add_argument("--flows", type=int, default=0, help="inverse autoregressive flow steps on the guide")
parser.add_argument("--epochs", type=int, default=5000)
parser.add_argument("--latent-dim", type=int, default=100)
parser.add_argument("--hidden", type=int, default=600, help="width of the guide's recurrent network")
parser.add_argument("--samples", type=int, default=100, help="importance samples; 0 leaves log p(x) out")
parser.add_argument("--compile", default="auto", help="how steps are run: auto, eager, graph or inductor")
parser.add_argument("--out", default=None, help="run folder for weights and metrics")
args = parser.parse_args()


def read(path):
    """The parts of the file as pairs of piano rolls (N, T, 88), padded at their ends, and lengths (N,)."""
    try:
        parts = json.loads(Path(path).read_text())
        chorales = [parts["train"], parts["valid"], parts["test"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(
            f'{path} is not the JSON file {{"train": ..., "valid": ..., "test": ...}} wanted: {error!r}'
        ) from error
    return [rolls(part) for part in chorales]


def rolls(part):
    lengths = torch.tensor([len(chorale) for chorale in part])
    x = torch.zeros(len(part), int(lengths.max()), KEYS)
    for n, chorale in enumerate(part):
        for t, notes in enumerate(chorale):
            for note in notes:
                if not LOWEST <= note < LOWEST + KEYS:
                    raise SystemExit(f"chorale {n}, slice {t} holds the note {note}; wanted are MIDI notes 21 to 108")
                x[n, t, int(note) - LOWEST] = 1
    return x, lengths


pyro.set_rng_seed(0)
train, validation, test = read(args.data)
print("chorales and their longest: " + ", ".join(f"{len(x)} × {x.shape[1]}" for x, _ in (train, validation, test)))
dmm = DeepMarkovModel(
    train[0].shape[1:],
    latent_dim=args.latent_dim,
    transition=Gated(hidden=200),
    emission=networks.MLP([100, 100], "ReLU"),
    guide=guides.InverseAutoregressive(args.flows, [100]) if args.flows else guides.MeanField(),
    hidden=args.hidden,
)
dmm.start_at(train[0].sum((0, 1)) / train[1].sum() * torch.ones(train[0].shape[1], 1))
result = fit(
    dmm,
    train,
    validation=validation,
    epochs=args.epochs,
    patience=max(args.epochs // 5, 1),
    batch_size=20,
    lr=3e-4,
    clip=10.0,
    objective=objectives.Annealed(start=0.2, fraction=0.2),
    # Pyro's weight decay of 2 beside a loss summed over 20 chorales is 0.1 beside their mean
    optimizer=functools.partial(torch.optim.Adam, betas=(0.96, 0.999), weight_decay=0.1),
    compile=args.compile,
    seed=0,
    out=args.out,
)
slices = test[1].sum().item()
terms = elbo_terms(dmm, test, num_samples=10, batch_size=20)
print(f"{len(result.history)} epochs; test −ELBO: {-terms.values.sum() / slices:.3f} nats per slice")
if args.samples:
    score = log_likelihood(dmm, test, num_samples=args.samples, compile="eager")
    print(f"test −log p(x): {-score.values.sum() / slices:.3f} nats per slice ({args.samples} samples)")
