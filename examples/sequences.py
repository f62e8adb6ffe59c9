"""Digits read row by row, as sequences of unequal length; their lower halves are forecast from the upper ones.

Trains a deep Markov model (or a variational RNN) on rows of 8 pixels, each scan cut off at a row of its own. Prints
the test log-likelihood per row, and what the right upper half says of the lower one; writes `forecasts.png`.

    python examples/sequences.py                      # about a minute on two cores
    python examples/sequences.py --model recurrent
"""

import argparse
from pathlib import Path

import pyro
import torch

from pyro_vae import data, elbo_terms, fit, likelihoods, log_likelihood
from pyro_vae.models import DeepMarkovModel, VariationalRNN, forecast
from pyro_vae.report import plotting

MODELS = {"markov": DeepMarkovModel, "recurrent": VariationalRNN}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", choices=MODELS, default="markov")
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--samples", type=int, default=200, help="importance samples per test sequence")
parser.add_argument("--out", default="runs/sequences", help="folder for the picture")
args = parser.parse_args()

pyro.set_rng_seed(0)
digits = data.load("digits", pixels="integer")  # greys are counts, 0 to 16


def rows(part):
    """The scans of a part as sequences (N, 8 rows, 8 pixels)."""
    (x,) = part.batch(slice(None))
    return x.flatten(1, 2)


x, test = rows(digits.train), rows(digits.test)
lengths = torch.randint(3, 9, (len(x),))  # a scan goes on for 3 to 8 rows
pair = MODELS[args.model](x.shape[1:], latent_dim=16, likelihood=likelihoods.Binomial(16))
result = fit(pair, (x, lengths), epochs=args.epochs, batch_size=64, lr=3e-3, schedule="cosine", clip=10.0, seed=0)
print(f"{len(result.history)} epochs in {sum(row['seconds'] for row in result.history):.0f} s")

whole, upper = torch.full((len(test),), 8), torch.full((len(test),), 4)
log_p = log_likelihood(pair, (test, whole), num_samples=args.samples)
print(
    f"test log p(x): {log_p.mean / 8:.2f} ± {log_p.stderr / 8:.2f} nats per row of 8 pixels; k-hat {log_p.khat_summary}"
)
terms = elbo_terms(pair, (test, whole))
print("KL by row:     " + "  ".join(f"{terms.sites[f'z_{t}']:.2f}" for t in range(1, 9)))

# log p(lower | upper) = log p(x) − log p(upper), under each digit's own upper half and under its neighbour's.
neighbours = torch.cat([test.roll(1, 0)[:, :4], test[:, 4:]], dim=1)
log_p_neighbours = log_likelihood(pair, (neighbours, whole), num_samples=args.samples)
log_p_upper = log_likelihood(pair, (test, upper), num_samples=args.samples)
own = log_p.values - log_p_upper.values
gain = own - (log_p_neighbours.values - log_p_upper.values.roll(1))
error = gain.std() / len(gain) ** 0.5
print(
    f"log p(lower | upper): {own.mean():.1f} nats; under another digit's upper half {gain.mean():.1f} ± {error:.1f} less"
)

few = test[:10]
futures = forecast(pair, few[:, :4], steps=4, num_samples=6, seed=0)
upper_half = torch.cat([few[:, :4], torch.zeros_like(few[:, 4:])], dim=1)
guesses = [torch.cat([few[:, :4], future], dim=1) for future in futures]
figure = plotting.images(
    torch.cat([few, upper_half, *guesses]),
    columns=len(few),
    vmax=16,
    title="the scan, its upper half, and six forecasts of the lower",
)
Path(args.out).mkdir(parents=True, exist_ok=True)
figure.savefig(Path(args.out) / "forecasts.png", dpi=150)
print(f"figure: {args.out}/forecasts.png")
