"""Files that root writes into a folder of the daemon's user: `nftsync flush` or `nftsync boot` by hand."""

from __future__ import annotations

import os
from pathlib import Path


def give_to_owner(descriptor: int, folder: Path) -> None:
    """Give a new file to the owner of its folder, so that the daemon can use it. Raises OSError.

    Use it only for a file that this process created: an older one may be a link to anywhere.
    """
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
