"""Fifty labels: what reading 1,293 digits without labels adds to fifty with one.

Prints the share of test digits misread by a classifier trained on the labelled digits alone, and by the semi-supervised
VAE (M2 of Kingma et al. 2014) trained on all. Writes `styles.png`: a test digit, and its style z in each of the ten classes.
"""

import argparse
from pathlib import Path

import pyro
import torch

from pyro_vae import data, encode, fit, likelihoods, networks
from pyro_vae.models.semisupervised import SemiSupervisedVAE, classify
from pyro_vae.report import plotting

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--labels", type=int, default=5, help="labels known of each class")
parser.add_argument("--epochs", type=int, default=200)
parser.add_argument("--out", default="runs/semisupervised", help="folder of the picture")
args = parser.parse_args()

digits = data.load("digits")
(x,), y = digits.train.batch(slice(None)), digits.train.y
(x_test,), y_test = digits.test.batch(slice(None)), digits.test.y

# A few labels of each class are kept; -1 says that a label is not known.
order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
known = torch.cat([order[y[order] == digit][: args.labels] for digit in range(10)])
labels = torch.full_like(y, -1)
labels[known] = y[known]


def trained(x, labels, epochs):
    """A semi-supervised VAE of these data, and the share of test digits that it misreads."""
    pyro.set_rng_seed(0)
    vae = SemiSupervisedVAE(
        digits.event_shape,
        latent_dim=4,
        label_weight=5.0,
        likelihood=likelihoods.Normal(scale="shared"),
        encoder=networks.MLP([100]),
        decoder=networks.MLP([100]),
        classifier=networks.MLP([100]),
    )
    result = fit(vae, (x, labels), epochs=epochs, lr=2e-3, schedule="cosine", seed=0, progress=False)
    errors = (classify(vae, x_test).argmax(1) != y_test).float().mean().item()
    return vae, errors, sum(row["seconds"] for row in result.history)


_, alone, _ = trained(x[known], y[known], args.epochs * 5)
# Each batch should hold some labelled digits, so they stand in the training set several times.
rows = torch.cat([torch.arange(len(x)), known.repeat(5)])
vae, together, seconds = trained(x[rows], labels[rows], args.epochs)
print(f"{len(known)} labelled digits alone:        {100 * alone:.1f} % of {len(y_test)} test digits misread")
print(f"and {len(x) - len(known)} without labels, in {seconds:.0f} s: {100 * together:.1f} %")

# The style of a digit is what z says of it beside its class.
shown = x_test[:8]
style = encode(vae, shown).sample()["z"]
with torch.no_grad():
    again = vae.p_x(torch.eye(10), style[:, None]).mean
rows = torch.cat([shown[:, None], again], 1)
out = Path(args.out)
out.mkdir(parents=True, exist_ok=True)
title = "a test digit (left), and its style in each class"
plotting.images(rows.reshape(-1, 8, 8), columns=11, title=title).savefig(out / "styles.png", dpi=150)
print(f"picture: {out / 'styles.png'}")
