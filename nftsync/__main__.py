"""`python -m nftsync` runs the command line."""

import sys

from nftsync.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
