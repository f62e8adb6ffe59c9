"""MNIST with 100 labels: the test error of M1+M2 (Kingma et al. 2014, table 1: 3.33 ± 0.14 %).

M1 is a VAE that is trained without labels; M2, the semi-supervised VAE, is trained on M1's codes, of which 100 have a label:
ten of each class, others for each seed. Test labels are looked at when training is over; images are not augmented. Prints
the error of each seed, of the same classifier trained on the 100 alone, their means, and the time taken.

    python examples/mnist_semisupervised.py --data-root ~/data --seeds 3
"""

import argparse
import time

import pyro
import torch

from pyro_vae import VAE, data, encode, fit, likelihoods, networks
from pyro_vae.models.semisupervised import SemiSupervisedVAE, classify

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data-root", default=None, help="folder of MNIST in torchvision's layout")
parser.add_argument("--labels", type=int, default=10, help="labels known of each class")
parser.add_argument("--seeds", type=int, default=1, help="how many draws of the labels")
parser.add_argument("--m1-epochs", type=int, default=12)
parser.add_argument("--epochs", type=int, default=20)
args = parser.parse_args()


def layers(*widths):
    """A network with hidden layers of these widths."""
    return networks.MLP(list(widths), "SiLU", init="glorot")


mnist = data.load("mnist", root=args.data_root)
images = {part: data.Examples(getattr(mnist, part).x.reshape(-1, 784), levels=255) for part in ("train", "test")}
y, y_test = mnist.train.y.long(), mnist.test.y
start, busy = time.perf_counter(), time.process_time()

pyro.set_rng_seed(0)
m1 = VAE((784,), latent_dim=50, encoder=networks.MLP([500]), decoder=networks.MLP([500]))
fit(m1, images["train"], epochs=args.m1_epochs, batch_size=200, lr=2e-3, schedule="cosine", binarize="dynamic", seed=0)
codes, test_codes = (encode(m1, images[part].batch(slice(None))[0]) for part in ("train", "test"))
# Dimensions that M1 leaves at the prior say nothing of x.
used = codes.mean.var(0) > 0.05
print(f"M1: {int(used.sum())} of 50 dimensions in use, {time.perf_counter() - start:.0f} s")


def error(x, labels, epochs, seed):
    """Per cent of test images misread by the classifier of an M2 that is trained on these codes."""
    pyro.set_rng_seed(seed)
    parts = {name: layers(300) for name in ("encoder", "decoder", "classifier")}
    likelihood = likelihoods.Normal(scale="per datum")
    m2 = SemiSupervisedVAE((x.shape[1],), latent_dim=5, label_weight=1.0, likelihood=likelihood, **parts)
    fit(m2, (x, labels), epochs=epochs, batch_size=100, lr=4e-3, schedule="cosine", seed=seed)
    return 100 * (classify(m2, test_codes.mean[:, used]).argmax(1) != y_test).float().mean().item()


rows = []
for seed in range(args.seeds):
    pyro.set_rng_seed(seed)
    order = torch.randperm(len(y))
    known = torch.cat([order[y[order] == digit][: args.labels] for digit in range(10)])
    # Each batch should hold some labelled data: they come 200 times, each time at another draw of their codes.
    labelled = codes.sample((200,))[:, known][..., used].flatten(0, 1)
    labels = y[known].repeat(200)
    x = torch.cat([codes.sample()[:, used], labelled])
    together = error(x, torch.cat([torch.full_like(y, -1), labels]), args.epochs, seed)
    rows.append((error(labelled, labels, 5, seed), together))
    took, worked = time.perf_counter() - start, time.process_time() - busy
    print(f"seed {seed}: {rows[-1][0]:.2f} % with the labelled alone, {together:.2f} % with all; {took:.0f} s so far")
alone, together = torch.tensor(rows).T
print(f"{10 * args.labels} labels alone: {alone.mean():.2f} % test error, {alone.min():.2f} to {alone.max():.2f}")
print(f"and {len(y)} images without: {together.mean():.2f} % test error, {together.min():.2f} to {together.max():.2f}")
print(f"{took:.0f} s, {worked:.0f} CPU seconds")
