"""`python -m mmjax`, the same as the command `mmjax`."""

import os
import platform
import sys
from collections.abc import Mapping

from mmjax.cli import main as cli

_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def main() -> None:
  """Runs the command line and exits with its code."""
  environment = with_huge_pages(os.environ)
  if environment is not None:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
  sys.exit(cli.main())


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str] | None:
  """Returns the environment in which memory comes in pages of 2 MiB.

  XLA on CPU asks for its buffers anew at each step, half a gigabyte in the
  main job, and the kernel hands them out in pages of 4 KiB: a third of the
  step. The allocator of glibc takes this setting only from the environment
  that a process starts with, so the command starts itself again.

  Returns:
    None where nothing is to be done: the setting is there, was set otherwise
    by the user, or the C library is another.
  """
  tunables = environment.get("GLIBC_TUNABLES", "")
  if "glibc.malloc.hugetlb" in tunables or sys.platform != "linux":
    return None
  if platform.libc_ver()[0] != "glibc":
    return None
  joined = f"{tunables}:{_HUGE_PAGES}" if tunables else _HUGE_PAGES
  return {**environment, "GLIBC_TUNABLES": joined}


if __name__ == "__main__":
  main()
