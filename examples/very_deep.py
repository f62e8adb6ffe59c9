"""A very deep VAE on 8×8 scans of digits: what each resolution of its latents holds.

Prints bits per dimension and the KL of each resolution, and writes `levels.png`: digits of the test set, each seen again
with the latents of the coarser resolutions kept and those of the finer ones drawn anew (Child 2020).

    python examples/very_deep.py                      # 6 levels, about a minute
    python examples/very_deep.py --levels 2 6 20      # a table by depth, at about equal numbers of parameters
"""

import argparse
import tempfile
from pathlib import Path

import pyro
import torch

from pyro_vae import VeryDeepVAE, data, elbo_terms, fit, generate, likelihoods, plotting, reconstruct

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--levels", type=int, nargs="+", default=[6], choices=[2, 6, 10, 20])
parser.add_argument("--parameters", type=int, default=30_000, help="about how many a model has, by its width")
parser.add_argument("--epochs", type=int, default=40)
parser.add_argument("--out", default=None, help="folder of the picture; a temporary one by default")
args = parser.parse_args()

# Blocks up and levels down: "8x2" is two at 8 × 8, "8d2" one followed by pooling by 2, "8m4" one that goes up from 4 to 8.
BLOCKS = {
    2: ("8x2,8d2,4x3", "4x1,8m4"),
    6: ("8x2,8d2,4x2,4d4,1x1", "1x1,4m1,4x1,8m4,8x2"),
    10: ("8x2,8d2,4x2,4d4,1x1", "1x1,4m1,4x3,8m4,8x4"),
    20: ("8x2,8d2,4x2,4d4,1x1", "1x1,4m1,4x7,8m4,8x10"),
}
digits = data.load("digits", pixels="integer")  # 17 greys, 0 to 16


def build(levels: int, width: int) -> VeryDeepVAE:
    pyro.set_rng_seed(0)
    likelihood = likelihoods.DiscretizedLogisticMixture(components=3, levels=17)
    return VeryDeepVAE(digits.event_shape, *BLOCKS[levels], width=width, latent_channels=4, likelihood=likelihood)


def count(pair: VeryDeepVAE) -> int:
    return sum(parameter.numel() for parameter in pair.parameters())


def trained(levels: int) -> VeryDeepVAE:
    """A pair of so many levels, as wide as the parameters allow, trained as the paper says."""
    width = min(range(8, 129), key=lambda width: abs(count(build(levels, width)) - args.parameters))
    pair = build(levels, width)
    careful = {"skip_gradient_above": 1000.0, "ema": 0.99, "compile": "graph"}
    fit(pair, digits.train, epochs=args.epochs, batch_size=64, lr=3e-3, schedule="cosine", seed=0, **careful)
    return pair


print(f"{'levels':>6} {'width':>6} {'parameters':>11} {'test ELBO, nats':>18} {'bits/dim':>9}", flush=True)
for levels in args.levels:
    pair = trained(levels)
    terms = elbo_terms(pair, digits.test, num_samples=10)
    score = f"{terms.elbo:.2f} ± {terms.stderr:.2f}"
    print(f"{levels:6} {pair.width:6} {count(pair):11,} {score:>18} {terms.bits_per_dim:9.3f}", flush=True)

x, rows, at = digits.test.batch(torch.arange(12))[0], [], [level.resolution for level in pair.top_down]
for resolution in sorted(set(at)):
    sites = [f"z_{t}" for t, r in enumerate(at) if r == resolution]
    print(f"{resolution} × {resolution}: {len(sites)} levels, KL {sum(terms.sites[site] for site in sites):.2f} nats")
    rows.append(reconstruct(pair, x, keep=at.index(resolution) + len(sites), temperature=0.8, seed=0))

out = Path(args.out or tempfile.mkdtemp())
out.mkdir(parents=True, exist_ok=True)
kept = ", ".join(f"{resolution}×{resolution}" for resolution in sorted(set(at)))
title = f"data; latents kept to {kept}; generated, all at temperature 0.8"
pictures = torch.cat([x, *rows, generate(pair, 12, temperature=0.8, seed=0)])
plotting.images(pictures, columns=12, vmax=16, title=title).savefig(out / "levels.png", dpi=150)
print(f"figure: {out / 'levels.png'}")
