"""A very deep VAE on 8×8 scans of digits: what each resolution of its latents holds, and what depth is worth.

Prints the ELBO by number of levels, at about equal numbers of parameters, and the KL of each resolution, and writes
`levels.png`: digits of the test set, each seen again with the latents of the coarser resolutions kept and those of the
finer ones drawn anew (Child 2020).

    python examples/very_deep.py                      # 6 levels, about a minute
    python examples/very_deep.py --mnist ~/data --levels 2 4 8 --parameters 60000 --epochs 10

The second takes 10,000 of MNIST's images at 16×16, binarised, and about a quarter of an hour.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import pyro
import torch
from torch.nn import functional as F

from pyro_vae import VeryDeepVAE, data, elbo_terms, fit, generate, likelihoods, plotting, reconstruct

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--levels", type=int, nargs="+", default=[6], choices=[2, 4, 6, 8, 10, 16, 20])
parser.add_argument(
    "--mnist", default=None, metavar="FOLDER", help="of MNIST in torchvision's layout, in place of the scans"
)
parser.add_argument("--parameters", type=int, default=30_000, help="about how many a model has, by its width")
parser.add_argument("--epochs", type=int, default=40)
parser.add_argument("--out", default=None, help="folder of the picture; a temporary one by default")
args = parser.parse_args()

# Blocks up and levels down: "8x2" is two at 8 × 8, "8d2" one followed by pooling by 2, "8m4" one that goes up from 4 to 8.
UP = {8: "8x2,8d2,4x2,4d4,1x1", 16: "16x2,16d2,8x2,8d2,4x2,4d4,1x1"}
BLOCKS = {
    (8, 2): ("8x2,8d2,4x3", "4x1,8m4"),
    (8, 6): (UP[8], "1x1,4m1,4x1,8m4,8x2"),
    (8, 10): (UP[8], "1x1,4m1,4x3,8m4,8x4"),
    (8, 20): (UP[8], "1x1,4m1,4x7,8m4,8x10"),
    (16, 2): ("16x2,16d2,8x3", "8x1,16m8"),
    (16, 4): (UP[16], "1x1,4m1,8m4,16m8"),
    (16, 8): (UP[16], "1x1,4m1,4x1,8m4,8x2,16m8,16x1"),
    (16, 16): (UP[16], "1x1,4m1,4x3,8m4,8x5,16m8,16x4"),
}
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
side = train.event_shape[-1]
if missing := [levels for levels in args.levels if (side, levels) not in BLOCKS]:
    parser.error(
        f"--levels {missing[0]}: at {side} × {side} there are {', '.join(str(n) for at, n in BLOCKS if at == side)}"
    )


def build(levels: int, width: int) -> VeryDeepVAE:
    pyro.set_rng_seed(0)
    return VeryDeepVAE(
        train.event_shape, *BLOCKS[side, levels], width=width, latent_channels=4, likelihood=likelihood()
    )


def count(pair: VeryDeepVAE) -> int:
    return sum(parameter.numel() for parameter in pair.parameters())


def trained(levels: int) -> VeryDeepVAE:
    """A pair of so many levels, as wide as the parameters allow, trained as the paper says."""
    width = min(range(8, 129), key=lambda width: abs(count(build(levels, width)) - args.parameters))
    pair = build(levels, width)
    if args.mnist:
        pair.start_at(train.x.mean(0))
    careful = {"skip_gradient_above": 1e4, "ema": 0.99, "compile": "graph"}
    fit(pair, train, epochs=args.epochs, batch_size=64, lr=3e-3, schedule="cosine", seed=0, **careful)
    return pair


head = f"{'levels':>6} {'width':>6} {'parameters':>11} {'test ELBO, nats':>18} {'bits/dim':>9}"
print(head + f"   more than {args.levels[0]} levels" * (len(args.levels) > 1), flush=True)
shallow = None
for levels in args.levels:
    pair = trained(levels)
    terms = elbo_terms(pair, test, num_samples=10)
    score = f"{terms.elbo:.2f} ± {terms.stderr:.2f}"
    row = f"{levels:6} {pair.width:6} {count(pair):11,} {score:>18} {terms.bits_per_dim:9.3f}"
    if shallow is None:
        shallow = terms
    else:  # image by image
        gain = terms.values - shallow.values
        row += f"   {gain.mean():+.2f} ± {gain.std() / len(gain) ** 0.5:.2f}"
    print(row, flush=True)

x, rows, at = test.batch(torch.arange(12))[0], [], [level.resolution for level in pair.top_down]
for resolution in sorted(set(at)):
    sites = [f"z_{t}" for t, r in enumerate(at) if r == resolution]
    print(f"{resolution} × {resolution}: {len(sites)} levels, KL {sum(terms.sites[site] for site in sites):.2f} nats")
    rows.append(reconstruct(pair, x, keep=at.index(resolution) + len(sites), temperature=0.8, seed=0))

out = Path(args.out or tempfile.mkdtemp())
out.mkdir(parents=True, exist_ok=True)
kept = ", ".join(f"{resolution}×{resolution}" for resolution in sorted(set(at)))
title = f"data; latents kept to {kept}; generated, all at temperature 0.8"
pictures = torch.cat([x, *rows, generate(pair, 12, temperature=0.8, seed=0)])
plotting.images(pictures, columns=12, vmax=white, title=title).savefig(out / "levels.png", dpi=150)
print(f"figure: {out / 'levels.png'}")
