"""Build what the tests need and this machine lacks, before the first test runs: python -m tests.programs."""

from __future__ import annotations

import sys

from tests.programs.cache import METALLB, NEW, OLD, ProgramsError, build, kubernetes, may_build, metallb


def main() -> int:
    try:
        build([kubernetes(OLD), kubernetes(NEW), *map(metallb, METALLB)])
    except ProgramsError as fault:
        print(f"{fault}; the tests that need it will be skipped" if not may_build() else fault, file=sys.stderr)
        return int(may_build())
    return 0


if __name__ == "__main__":
    sys.exit(main())
