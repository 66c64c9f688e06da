"""The door of manifest -> tar: `uv run python shards/build.py MANIFEST OUT`."""

import sys

from asrlora.cli import main

if __name__ == "__main__":
    sys.exit(main(["shards", "build", *sys.argv[1:]]))
