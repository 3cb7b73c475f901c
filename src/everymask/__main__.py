"""`python -m everymask`: the command line where only modules can be started, as by ``torchrun -m everymask``."""

from .cli import main

if __name__ == "__main__":
    main()
