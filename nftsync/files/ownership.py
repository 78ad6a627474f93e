"""Files that root writes into a folder of the daemon's user: `nftsync flush` or `nftsync boot` by hand."""

from __future__ import annotations

import os
from pathlib import Path


def give_to_owner(descriptor: int, folder: Path) -> None:
    """Give a file that we have just made to whom its folder belongs, who must be able to use it. Raises OSError.

    Only for a file of our own making: one that was there may be a link to anywhere.
    """
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
