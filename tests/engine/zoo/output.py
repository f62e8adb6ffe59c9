"""Programs that print, log, warn and write files."""
# ruff: noqa: SIM115

import io
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from tests.engine.zoo.program import alone, decoder_net, encoder_net, infer, observe, program, usual_model

quiet = program(visible=False)
logger = logging.getLogger("zoo")


def folder():
    """A temporary folder, removed when the object that stands for it is closed."""
    return tempfile.TemporaryDirectory()


@program("print", "stdout", "value", visible=False)
def prints():
    """The model prints."""
    decoder = decoder_net()

    def model(x):
        print("norm", round(float(observe(x, decoder).norm()), 3))

    return alone(model)


@program("print", "stdout", visible=False)
def prints_constant_text():
    """The guide prints a text that never changes."""
    encoder = encoder_net()

    def guide(x):
        print("guide")
        infer(x, encoder)

    return alone(usual_model(), guide)


@program("stdout", "write", visible=False)
def writes_to_stdout():
    """The model writes to `sys.stdout`."""
    decoder = decoder_net()

    def model(x):
        sys.stdout.write(".")
        observe(x, decoder)

    return alone(model)


@program("log", visible=False)
def logs():
    """The model logs at level INFO."""
    decoder = decoder_net()

    def model(x):
        logger.info("rows %d", len(x))
        observe(x, decoder)

    return alone(model)


@program("warn", visible=False)
def warns():
    """The model warns at each call."""
    decoder = decoder_net()

    def model(x):
        warnings.warn("zoo: rows are few", stacklevel=1)
        observe(x, decoder)

    return alone(model)


@program("warn", visible=False)
def warns_in_forward():
    """A network's forward warns about its input's shape."""

    class Careful(nn.Module):
        def forward(self, x):
            if x.shape[0] < 9:
                warnings.warn(f"zoo: {x.shape[0]} rows", UserWarning, stacklevel=2)
            return x

    encoder = nn.Sequential(Careful(), encoder_net())
    return alone(usual_model(), lambda x: infer(x, encoder))


@program("open", "file", "write", "value", visible=False)
def appends_to_file():
    """The model opens a file and appends a line."""
    decoder, place = decoder_net(), folder()
    path = Path(place.name) / "log.txt"

    def model(x):
        with open(path, "a") as file:
            file.write(f"{float(observe(x, decoder).norm()):.3f}\n")

    return alone(model, kept=path.read_text, close=place.cleanup)


@program("file", "write", visible=False)
def writes_to_open_file():
    """The model writes to a file that is open already."""
    decoder, place = decoder_net(), folder()
    file = open(Path(place.name) / "log.txt", "w+")

    def model(x):
        file.write("x\n")
        observe(x, decoder)

    def kept():
        file.seek(0)
        return file.read()

    def close():
        file.close()
        place.cleanup()

    return alone(model, kept=kept, close=close)


@program("buffer", "StringIO", "write", visible=False)
def writes_to_memory():
    """The model writes to an io.StringIO."""
    decoder, buffer = decoder_net(), io.StringIO()

    def model(x):
        buffer.write("x")
        observe(x, decoder)

    return alone(model, kept=buffer.getvalue)


@program("save", "file", "path", "write", visible=False)
def saves_tensor():
    """The model saves its latent by `torch.save`."""
    decoder, place = decoder_net(), folder()
    path = Path(place.name) / "z.pt"

    def model(x):
        torch.save(observe(x, decoder).detach(), path)

    return alone(model, kept=lambda: torch.load(path), close=place.cleanup)


@program("bar", "update", "tqdm", visible=False)
def progress_bar():
    """The model advances a progress bar."""
    from tqdm import tqdm

    decoder = decoder_net()
    bar = tqdm(total=1000, file=io.StringIO(), mininterval=1e9)

    def model(x):
        bar.update(1)
        observe(x, decoder)

    return alone(model, kept=lambda: bar.n, close=bar.close)
