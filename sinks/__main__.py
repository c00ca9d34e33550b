"""`python -m sinks`."""

import sys

from sinks.cli import main

if __name__ == "__main__":  # not in the processes of a grid, which import it again
    sys.exit(main())
