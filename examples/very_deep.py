"""A very deep VAE on 8×8 scans of digits: what each resolution of its latents holds, and what depth is worth.

Prints the ELBO by depth, the network being the same, and the KL of each resolution, and writes `levels.png`: digits of
the test set, each seen again with the latents of the coarser resolutions kept and those of the finer ones drawn anew
(Child 2020). Depth is stochastic depth: levels are put in groups, and those of a group do not see what the others of it
drew. All pairs have the same networks; what a shallow one lacks is that a level follows from the latents just before it.

    python examples/very_deep.py                      # 6 levels, about a minute
    python examples/very_deep.py --mnist ~/data --depths 1 2 4 8 --epochs 10

The second takes 10,000 of MNIST's images at 16×16, binarised, and about twenty minutes.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import pyro
import torch
from torch.nn import functional as F

from pyro_vae import VeryDeepVAE, data, elbo_terms, fit, generate, likelihoods, reconstruct
from pyro_vae.report import plotting

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument(
    "--depths", type=int, nargs="+", default=None, metavar="DEPTH", help="groups of levels; all by default"
)
parser.add_argument(
    "--mnist", default=None, metavar="FOLDER", help="of MNIST in torchvision's layout, in place of the scans"
)
parser.add_argument("--epochs", type=int, default=40)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default=None, help="folder of the picture; a temporary one by default")
args = parser.parse_args()

# Blocks up and levels down: "8x2" is two at 8 × 8, "8d2" one followed by pooling by 2, "8m4" one that goes up from 4 to 8.
if args.mnist is None:
    levels, blocks = 6, ("8x2,8d2,4x2,4d4,1x1", "1x1,4m1,4x1,8m4,8x2")
else:
    levels, blocks = 8, ("16x2,16d2,8x2,8d2,4x2,4d4,1x1", "1x1,4m1,4x1,8m4,8x2,16m8,16x1")
depths = args.depths or [levels]
if wrong := [depth for depth in depths if depth < 1 or levels % depth]:
    parser.error(f"--depths {wrong[0]}: there are {levels} levels, to be put in groups of one size")

if args.mnist is None:
    digits = data.load("digits", pixels="integer")  # 17 greys, 0 to 16
    train, test, white = digits.train, digits.test, 16
    likelihood = partial(likelihoods.DiscretizedLogisticMixture, components=3, levels=17)
else:
    digits = data.load("mnist", root=args.mnist)
    padded = [F.pad(part.x.float() / 255, (2, 2, 2, 2)) for part in (digits.train.take(range(10_000)), digits.test)]
    train, test = (F.avg_pool2d(images, 2) for images in padded)
    train, test, white = data.Examples(train, binarize="dynamic"), data.Examples(test[:2000], binarize="static"), 1
    likelihood = likelihoods.Bernoulli


class Grouped(VeryDeepVAE):
    """Levels in groups of `group`, independent of each other given the groups above.

    h carries all latents drawn so far, for the likelihood; g, which levels read, goes the same way with those of its own
    group left at 0.
    """

    group = 1

    def model(self, x):
        pyro.module(self.name, self)
        h = g = None
        with pyro.plate("data", len(x), dim=-1):
            for t, level in enumerate(self.top_down):
                h, g = level.enter(h), level.enter(g if t % self.group else h)
                p, passed = level.prior(g)
                z = pyro.sample(f"z_{t}", p)
                h, g = level.leave(h + (passed - g), z), level.leave(passed, torch.zeros_like(z))
            pyro.sample("x", self.likelihood(self.output(h)), obs=x)

    def guide(self, x):
        pyro.module(self.name, self)
        h = g = None
        seen = self.bottom_up(self.likelihood.as_input(x))
        with pyro.plate("data", len(x), dim=-1):
            for t, level in enumerate(self.top_down):
                h, g = level.enter(h), level.enter(g if t % self.group else h)
                z = pyro.sample(f"z_{t}", level.posterior(g, seen[level.resolution]))
                _, passed = level.prior(g)
                h, g = level.leave(h + (passed - g), z), level.leave(passed, torch.zeros_like(z))


def build(depth: int) -> Grouped:
    pyro.set_rng_seed(args.seed)
    pair = Grouped(train.event_shape, *blocks, width=32, latent_channels=4, likelihood=likelihood())
    pair.group = levels // depth
    if args.mnist:
        pair.start_at(train.x.mean(0))
    return pair


print(f"{sum(parameter.numel() for parameter in build(1).parameters()):,} parameters")
print(f"{'depth':>5} {'test ELBO, nats':>18} {'bits/dim':>9}", flush=True)
shallow = None
for depth in depths:
    pair = build(depth)
    careful = {"skip_gradient_above": 1e4, "ema": 0.99, "compile": "graph"}  # the paper skips and averages likewise
    fit(pair, train, epochs=args.epochs, batch_size=64, lr=3e-3, schedule="cosine", seed=args.seed, **careful)
    terms = elbo_terms(pair, test, num_samples=10, seed=args.seed)
    row = f"{depth:5} {f'{terms.elbo:.2f} ± {terms.stderr:.2f}':>18} {terms.bits_per_dim:9.3f}"
    if shallow is None:
        shallow = terms
    else:  # image by image
        gain = terms.values - shallow.values
        row += f"   {gain.mean():+.2f} ± {gain.std() / len(gain) ** 0.5:.2f} nats over depth {depths[0]}"
    print(row, flush=True)

x, rows, at = test.batch(torch.arange(12))[0], [], [level.resolution for level in pair.top_down]
for resolution in sorted(set(at)):
    sites = [f"z_{t}" for t, r in enumerate(at) if r == resolution]
    nats = sum(terms.sites[site] for site in sites)
    print(f"depth {depth}, {resolution} × {resolution}: {len(sites)} levels, KL {nats:.2f} nats")
    rows.append(reconstruct(pair, x, keep=at.index(resolution) + len(sites), temperature=0.8, seed=0))

out = Path(args.out or tempfile.mkdtemp())
out.mkdir(parents=True, exist_ok=True)
kept = ", ".join(f"{resolution}×{resolution}" for resolution in sorted(set(at)))
title = f"data; latents kept to {kept}; generated, all at temperature 0.8"
pictures = torch.cat([x, *rows, generate(pair, 12, temperature=0.8, seed=0)])
plotting.images(pictures, columns=12, vmax=white, title=title).savefig(out / "levels.png", dpi=150)
print(f"figure: {out / 'levels.png'}")
