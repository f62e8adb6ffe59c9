"""`python -m pyro_vae` is the command `pyro-vae`."""

import os
import sys

# Python puts the current folder first, where any file could stand in for a library's module.
if sys.path and sys.path[0] in ("", os.getcwd()) and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

if __name__ == "__main__":
    from pyro_vae.cli import main

    sys.exit(main())
