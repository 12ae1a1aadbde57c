"""`python -m mmjax`, the same as the command `mmjax`."""

import os
import platform
import sys
from collections.abc import Mapping

from mmjax.cli import main as cli

# Pages of 2 MiB, and memory that was freed stays with the process.
_TUNABLES = {
  "glibc.malloc.hugetlb": "1",
  "glibc.malloc.mmap_max": "0",
  "glibc.malloc.trim_threshold": str(2**40),
  "glibc.malloc.arena_max": "1",
}


def main() -> None:
  """Runs the command line and exits with its code."""
  environment = with_allocator(os.environ)
  if environment is not None:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
  sys.exit(cli.main())


def with_allocator(environment: Mapping[str, str]) -> dict[str, str] | None:
  """Returns the environment in which glibc keeps XLA's buffers at hand.

  XLA on CPU asks for its buffers anew at each step, half a gigabyte in the
  main job, and gives them back after it. By default these are pages of 4 KiB
  that the kernel clears each time: a third of the step. The allocator takes
  its settings only from the environment that a process starts with, so the
  command starts itself again.

  Returns:
    None where nothing is to be done: the user has set all of it, or the C
    library is another.
  """
  given = environment.get("GLIBC_TUNABLES", "")
  missing = [f"{k}={v}" for k, v in _TUNABLES.items() if k not in given]
  if not missing or sys.platform != "linux":
    return None
  if platform.libc_ver()[0] != "glibc":
    return None
  joined = ":".join([given, *missing] if given else missing)
  return {**environment, "GLIBC_TUNABLES": joined}


if __name__ == "__main__":
  main()
