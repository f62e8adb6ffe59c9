"""What a hierarchy gains on binarised MNIST: three levels against one, equal epochs, about as many parameters.

    python examples/mnist_hierarchical.py --data-root FOLDER_WITH_MNIST

Prints both test log-likelihoods, the difference image by image with its standard error, and each level's KL.
"""

import argparse

import pyro

from pyro_vae import VAE, HierarchicalVAE, data, elbo_terms, fit, log_likelihood, networks, objectives

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data-root", default=None, help="folder that holds MNIST in torchvision's layout")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--samples", type=int, default=200, help="importance samples per test image")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

mnist = data.load("mnist", root=args.data_root)
test = mnist.test.with_binarize("static", 0)


def layers(*widths):
    """A network with hidden layers of these widths."""
    return networks.MLP(list(widths), "SiLU", init="glorot")


pyro.set_rng_seed(args.seed)
PAIRS = {
    "one level of 56": VAE(mnist.event_shape, 56, encoder=layers(400, 400), decoder=layers(400, 400)),
    "levels of 32, 16, 8": HierarchicalVAE(
        mnist.event_shape,
        [32, 16, 8],
        width=64,
        encoder=[layers(380, 380), layers(128), layers(128)],
        decoder=[layers(380, 380), layers(128), layers(128)],
    ),
}

scores = {}
for name, pair in PAIRS.items():
    result = fit(
        pair,
        mnist.train,
        epochs=args.epochs,
        batch_size=200,
        lr=2e-3,
        schedule="cosine",
        binarize="dynamic",
        objective=objectives.Annealed(fraction=0.3, inner=objectives.MeanFieldELBO()),
        seed=args.seed,
    )
    scores[name] = log_likelihood(pair, test, args.samples, progress=True)
    terms = elbo_terms(pair, test, num_samples=10)
    levels = ", ".join(f"{site} {terms.sites[site]:.2f}" for site in terms.latents)
    print(
        f"{name}: {sum(p.numel() for p in pair.parameters()):,} parameters, {args.epochs} epochs in "
        f"{sum(row['seconds'] for row in result.history):.0f} s\n  test log p(x) {scores[name]}\n"
        f"  ELBO {terms.elbo:.2f}, KL by level: {levels}; collapsed: {', '.join(terms.collapsed) or 'none'}",
        flush=True,
    )
one, three = (score.values.double() for score in scores.values())
gain = three - one
print(f"gain of the hierarchy: {gain.mean():.3f} ± {gain.std() / len(gain) ** 0.5:.3f} nats per image (paired)")
