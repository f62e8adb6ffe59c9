"""p(x | y): digits by their class, and digits completed from one quadrant (Sohn et al. 2015; Pyro's CVAE tutorial).

Prints what knowing y is worth, log p(x | y) − log p(x) in nats per image, and writes two pictures: ten digits of each
class, and for six scans what is seen (lower left quadrant), the scan, and six completions.
"""

import argparse
from pathlib import Path

import pyro
import torch

from pyro_vae import VAE, data, fit, generate, log_likelihood, networks
from pyro_vae.report import plotting

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--samples", type=int, default=200, help="importance samples per test image")
parser.add_argument("--out", type=Path, default=Path("runs/conditional"), help="folder for the pictures")
args = parser.parse_args()

digits = data.load("digits", binarize="static")
(x_train,), (x_test,) = (part.batch(slice(None)) for part in (digits.train, digits.test))
args.out.mkdir(parents=True, exist_ok=True)


def trained(x, y=None, condition=None):
    """A small VAE of x, given y if there is one."""
    pyro.set_rng_seed(0)
    network = {"encoder": networks.MLP([200], "SiLU"), "decoder": networks.MLP([200], "SiLU")}
    vae = VAE(x.shape[1:], latent_dim=8, condition=condition, **network)
    fit(vae, x if y is None else (x, y), epochs=args.epochs, lr=2e-3, schedule="cosine", seed=0, progress=False)
    return vae


def worth(vae, of_x_alone, x, y):
    """log p(x | y) − log p(x) over the test images, in words."""
    given, alone = log_likelihood(vae, (x, y), args.samples), log_likelihood(of_x_alone, x, args.samples)
    gain = (given.values - alone.values).double()
    return f"{given.mean:.2f} against {alone.mean:.2f}: {gain.mean():.2f} ± {gain.std() / len(gain) ** 0.5:.2f}"


# Digits by class: y is a label.
by_class = trained(x_train, digits.train.y, networks.Labels(10))
print(
    f"log p(digit | class), log p(digit): {worth(by_class, trained(x_train), x_test, digits.test.y)} nats", flush=True
)
drawn = generate(by_class, 100, output="mean", condition=torch.arange(100) % 10, seed=0)
plotting.images(drawn, columns=10, title="ten digits of each class").savefig(args.out / "classes.png", dpi=150)


# Completion: y is the lower left quadrant, x the three others.
seen = torch.zeros(8, 8, dtype=torch.bool)
seen[4:, :4] = True


def split(images):
    """The pixels that are missing, (N, 48), and those that are seen, (N, 16)."""
    return images[:, 0, ~seen], images[:, 0, seen]


rest, quadrant = split(x_train)
completing = trained(rest, quadrant, networks.Features([16]))
print(f"log p(rest | quadrant), log p(rest): {worth(completing, trained(rest), *split(x_test))} nats")
few = x_test[:6]
rows = [torch.where(seen, few, 0.4), few]
for seed in range(6):
    whole = few.clone()
    whole[:, 0, ~seen] = generate(completing, 6, output="mean", condition=split(few)[1], seed=seed)
    rows.append(whole)
page = torch.stack(rows, dim=1).flatten(0, 1)
figure = plotting.images(page, columns=8, title="seen, scan, six completions")
figure.savefig(args.out / "quadrants.png", dpi=150)
print(f"pictures: {args.out / 'classes.png'}, {args.out / 'quadrants.png'}")
