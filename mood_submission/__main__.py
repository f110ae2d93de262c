"""`python -m mood_submission COMMAND ...` is the command line `mood-submission COMMAND ...`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
