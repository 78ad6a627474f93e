"""Build what these tests need and this machine lacks, before the first test runs: python -m tests.apiserver."""

from __future__ import annotations

import sys

from tests.apiserver.harness import HarnessError, build_programs, find_programs, may_build


def main() -> int:
    try:
        if find_programs() is None and not may_build():
            print(
                "there is no kube-apiserver, so the tests that need it will be skipped: "
                "run tests/apiserver/build once as root"
            )
        else:
            build_programs()
    except HarnessError as fault:
        print(fault, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
