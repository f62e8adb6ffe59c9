"""MNIST with 100 labels: the test error of M2 and of M1+M2 (Kingma et al. 2014, table 1: 11.97 ± 1.71 and 3.33 ± 0.14 %).

M2, the semi-supervised VAE, is trained on pixels, or for M1+M2 on the codes (the means of q(z | x)) of M1, a VAE that is
trained without labels. 100 labels are known, ten of each class, others for each seed. Test labels are looked at when
training is over; images are not augmented. Prints the error of each seed, of the same classifier trained on the 100 alone,
their means, and the time taken.

    python examples/mnist_semisupervised.py --data-root ~/data --seeds 3
    python examples/mnist_semisupervised.py --data-root ~/data --model M2
"""

import argparse
import time

import pyro
import torch

from pyro_vae import VAE, data, encode, fit, likelihoods, networks
from pyro_vae.models.semisupervised import SemiSupervisedVAE, classify

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data-root", default=None, help="folder of MNIST in torchvision's layout")
parser.add_argument("--model", default="M1+M2", choices=["M2", "M1+M2"])
parser.add_argument("--labels", type=int, default=10, help="labels known of each class")
parser.add_argument("--seeds", type=int, default=1, help="how many draws of the labels")
parser.add_argument("--m1-epochs", type=int, default=25)
parser.add_argument("--epochs", type=int, default=None, help="400 for M1+M2, 75 for M2 by default")
args = parser.parse_args()
epochs = args.epochs or {"M2": 75, "M1+M2": 400}[args.model]

mnist = data.load("mnist", root=args.data_root)
pixels = {part: getattr(mnist, part).x.reshape(-1, 784) for part in ("train", "test")}
y, y_test = mnist.train.y.long(), mnist.test.y
start, busy = time.perf_counter(), time.process_time()


def codes_of_m1():
    """What M1, trained on all images and no label, makes of each image: means of q(z | x) for training and test set."""
    pyro.set_rng_seed(0)
    m1 = VAE((784,), latent_dim=50, encoder=networks.MLP([500]), decoder=networks.MLP([500]))
    images = data.Examples(pixels["train"], levels=255)
    fit(m1, images, epochs=args.m1_epochs, batch_size=200, lr=2e-3, schedule="cosine", binarize="dynamic", seed=0)
    codes = {part: encode(m1, pixels[part].float() / 255).mean for part in pixels}
    # Dimensions that M1 leaves at the prior say nothing of x.
    used = codes["train"].var(0) > 0.05
    print(f"M1: {int(used.sum())} of 50 dimensions in use, {time.perf_counter() - start:.0f} s")
    return {part: code[:, used] for part, code in codes.items()}


inputs, levels = (pixels, 255) if args.model == "M2" else (codes_of_m1(), 1)


def build(event_shape, mean):
    """M2 of pixels, or of codes."""
    parts = {place: networks.MLP([300], "SiLU", init="glorot") for place in ("encoder", "decoder", "classifier")}
    # Two labels drawn in place of ten summed over: a step takes a third of the time or less.
    settings = {"marginalize": False, "label_weight": 50.0, **parts}
    if args.model == "M1+M2":
        return SemiSupervisedVAE(event_shape, 20, likelihood=likelihoods.Normal(scale="per datum"), **settings)
    m2 = SemiSupervisedVAE(event_shape, latent_dim=50, **settings)
    m2.start_at(mean)
    return m2


def error(x, labels, seed):
    """Per cent of test images misread by the classifier of an M2 that is trained on these data."""
    pyro.set_rng_seed(seed)
    train = data.Examples(x, levels=levels, extras=(labels,))
    m2 = build(train.event_shape, x.float().mean(0) / levels)
    binarize = "dynamic" if args.model == "M2" else "none"
    fit(m2, train, epochs=epochs, batch_size=220, lr=3e-3, schedule="cosine", binarize=binarize, seed=seed)
    return 100 * (classify(m2, inputs["test"].float() / levels).argmax(1) != y_test).float().mean().item()


rows = []
for seed in range(args.seeds):
    pyro.set_rng_seed(seed)
    order = torch.randperm(len(y))
    known = torch.cat([order[y[order] == digit][: args.labels] for digit in range(10)])
    # Each batch should hold some labelled data: a tenth as many as there are without a label.
    known = known.repeat(len(y) // (10 * len(known)))
    x, labels = torch.cat([inputs["train"], inputs["train"][known]]), torch.cat([torch.full_like(y, -1), y[known]])
    alone, together = error(inputs["train"][known], y[known], seed), error(x, labels, seed)
    rows.append((alone, together))
    took, worked = time.perf_counter() - start, time.process_time() - busy
    print(f"seed {seed}: {alone:.2f} % with the labelled alone, {together:.2f} % with all; {took:.0f} s so far")
alone, together = torch.tensor(rows).T
print(f"{10 * args.labels} labels alone: {alone.mean():.2f} % test error, {alone.min():.2f} to {alone.max():.2f}")
print(f"and {len(y)} images without: {together.mean():.2f} % test error, {together.min():.2f} to {together.max():.2f}")
print(f"{took:.0f} s, {worked:.0f} CPU seconds")
