"""`python -m mmjax`, the same as the command `mmjax`."""

import sys

from mmjax.cli import main as cli


def main() -> None:
  """Runs the command line and exits with its code."""
  sys.exit(cli.main())


if __name__ == "__main__":
  main()
