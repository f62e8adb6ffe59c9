"""Several latents one above the other: what each level of a ladder holds, on 8x8 scans of digits.

Trains three levels top-down (Sønderby et al. 2016) and as a plain stack (Burda et al. 2016), prints test log p(x) and each
level's KL, and draws for eight scans what is left of them where the first 0, 1, 2 or 3 latents are kept and the others
are drawn anew from the model (Child 2020, figure 4).
"""

import argparse
from pathlib import Path

import pyro
import torch

from pyro_vae import HierarchicalVAE, data, elbo_terms, fit, log_likelihood, networks, objectives, reconstruct
from pyro_vae.report import plotting

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--samples", type=int, default=200, help="importance samples per test image")
parser.add_argument("--out", type=Path, default=Path("runs/hierarchical"), help="folder for the picture")
args = parser.parse_args()

digits = data.load("digits")
test = digits.test.with_binarize("static", 0)


def layer():
    """One hidden layer; a copy of it stands at every step up and down."""
    return networks.MLP([100], "SiLU", init="glorot")


for order in ("bottom-up", "top-down"):
    pyro.set_rng_seed(0)
    vae = HierarchicalVAE(digits.event_shape, [10, 6, 3], order, width=100, encoder=layer(), decoder=layer())
    result = fit(
        vae,
        digits.train,
        epochs=args.epochs,
        lr=2e-3,
        schedule="cosine",
        binarize="dynamic",
        objective=objectives.Annealed(fraction=0.3),  # warm-up keeps the upper levels from being given up early
        seed=0,
        progress=False,
    )
    terms = elbo_terms(vae, test, num_samples=20)
    levels = ", ".join(f"{site} {terms.sites[site]:.2f}" for site in sorted(terms.latents))
    print(
        f"{order}: {args.epochs} epochs in {sum(row['seconds'] for row in result.history):.0f} s\n"
        f"  test log p(x) {log_likelihood(vae, test, args.samples)}\n"
        f"  ELBO {terms.elbo:.2f}, KL by level: {levels}; collapsed: {', '.join(terms.collapsed) or 'none'}",
        flush=True,
    )

(few,) = test.batch(slice(0, 8))
rows = [few, *(reconstruct(vae, few, keep=keep, seed=1) for keep in (3, 2, 1, 0))]
args.out.mkdir(parents=True, exist_ok=True)
figure = plotting.images(torch.cat(rows), columns=8, title="scan; three, two, one, no latent kept")
figure.savefig(args.out / "levels.png", dpi=150)
print(f"picture: {args.out / 'levels.png'}")
