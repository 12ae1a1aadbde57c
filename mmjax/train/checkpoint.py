"""What is saved, and how it comes back onto any mesh.

A checkpoint holds every leaf of the state under its name, and a JSON record:
step, config, versions, git revision, and the shape and dtype of each leaf.
Orbax writes it beside the training and renames it when complete, so that a
run killed at any moment finds the last whole one.
"""

import functools
import pathlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

import mmjax
from mmjax import errors, tree
from mmjax.parallel import hosts
from mmjax.train import resilience, workdir

Leaves = Mapping[str, Sequence[Any]]  # name -> (shape, dtype name)
_SHOWN = 10


class Checkpoints:
  """The checkpoints of a run; a context manager that waits for the last save.

  All processes make one, and call each method together.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    keep: int = 1,
    config: Mapping[str, Any] | None = None,
    read_only: bool = False,
  ) -> None:
    """Opens a folder and removes what a killed run left half-written.

    Args:
      folder: made when the first checkpoint is saved.
      keep: how many of the newest stay; the older ones are deleted.
      config: goes into each checkpoint.
      read_only: change nothing in the folder, which must exist to be read.
    """
    self.folder = pathlib.Path(folder).absolute()
    self._keep, self._config = keep, workdir.plain(config or {})
    self._bytes = 0
    with resilience.storage(self.folder):
      if hosts.is_lead() and not read_only:
        self.folder.mkdir(parents=True, exist_ok=True)
      hosts.barrier("checkpoint folder")
      self._manager = ocp.CheckpointManager(
        self.folder,
        item_names=("state", "about"),
        options=ocp.CheckpointManagerOptions(
          # Orbax has a mode to read only, which warns of itself on stderr.
          max_to_keep=None if read_only else keep,
          create=False,
          cleanup_tmp_directories=not read_only,
        ),
      )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    # An open manager keeps other processes waiting for this one at exit. A
    # failed save must not hide the error that is already on its way.
    try:
      self.close()
    except errors.StorageError:
      if kind is None:
        raise

  def latest(self) -> int | None:
    """Returns the step of the newest whole checkpoint, or None."""
    return self._manager.latest_step()

  def check_space(self, state: Any) -> None:
    """Compares what the run will write with the free disk, before it starts.

    Raises:
      StorageError: too little space; names path, needed and free bytes.
    """
    # The oldest goes only after the newest is whole.
    new = self._keep + 1 - len(self._manager.all_steps())
    needed = max(1, new) * tree.size_bytes(state)
    free = resilience.free_bytes(self.folder)
    if needed > free:
      raise errors.StorageError(
        f"{self.folder}: {max(1, new)} checkpoints of "
        f"{resilience.size(tree.size_bytes(state))} need "
        f"{resilience.size(needed)}, {resilience.size(free)} are free; free "
        "some space, choose another --workdir, or lower checkpoint.keep "
        f"(now {self._keep})."
      )

  def save(self, step: int, state: Any) -> None:
    """Begins to save; the state may be given up (donated) on return.

    Raises:
      StorageError: this or the save before it failed.
    """
    leaves = dict(tree.items(state))
    self._bytes = tree.size_bytes(state)
    about = {
      "step": step,
      "config": self._config,
      "revision": revision(),
      "mmjax": mmjax.__version__,
      "jax": jax.__version__,
      "leaves": describe(state),
    }
    with resilience.storage(self.folder / str(step), self._bytes):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(leaves), about=ocp.args.JsonSave(about)
        ),
      )

  def check(self) -> None:
    """Raises StorageError if a save that was begun has failed since."""
    with resilience.storage(self.folder, self._bytes):
      self._manager.check_for_errors()

  def wait(self) -> None:
    """Waits until what was begun is saved; raises StorageError like `save`."""
    with resilience.storage(self.folder, self._bytes):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and lets go of the folder."""
    try:
      self.wait()
    finally:
      with resilience.storage(self.folder, self._bytes):
        self._manager.close()

  def about(self, step: int | None = None) -> dict[str, Any]:
    """Returns the JSON record of a checkpoint, by default the newest."""
    step = self._chosen(step)
    with self._readable(step):
      found = self._manager.restore(
        step, args=ocp.args.Composite(about=ocp.args.JsonRestore())
      )
    return found["about"]

  def restore(
    self,
    shapes: Any,
    step: int | None = None,
    *,
    only: Callable[[str], bool] | None = None,
  ) -> Any:
    """Reads a state straight into its place, whatever mesh it came from.

    Args:
      shapes: tree of `jax.ShapeDtypeStruct` with shardings.
      step: which; default the newest.
      only: leaves of other names are neither read nor compared, and are None
        in what is returned.

    Raises:
      StorageError: there is no checkpoint, or it cannot be read.
      InputError: it does not fit `shapes`; a table says where.
    """
    step = self._chosen(step)
    only = only or (lambda _: True)
    wanted = {name: x for name, x in tree.items(shapes) if only(name)}
    saved = {k: v for k, v in self.about(step)["leaves"].items() if only(k)}
    check_fit(saved, describe(wanted), f"{self.folder / str(step)}")
    with self._readable(step):
      found = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(
            wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
          )
        ),
      )
    return tree.map_named(lambda name, _: found["state"].get(name), shapes)

  def _chosen(self, step: int | None) -> int:
    steps = sorted(self._manager.all_steps())
    if step is None and steps:
      return steps[-1]
    if step not in steps:
      raise errors.StorageError(
        f"{self.folder}: there is no checkpoint"
        + (f" of step {step}; there are {steps}." if step is not None else ".")
        + " Give the workdir of a run that has saved one."
      )
    return step

  def _readable(self, step: int) -> "_Readable":
    return _Readable(self.folder / str(step))


class _Readable:
  """Turns whatever goes wrong in reading a checkpoint into StorageError."""

  def __init__(self, path: pathlib.Path) -> None:
    self.path = path

  def __enter__(self) -> None:
    pass

  def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
    if isinstance(error, OSError | ValueError | KeyError):
      reason, *_ = str(error).strip().splitlines() or [type(error).__name__]
      raise errors.StorageError(
        f"{self.path}: the checkpoint cannot be read ({reason[:200]}); delete "
        "this folder to go on from an older one."
      ) from error


def describe(state: Any) -> dict[str, list[Any]]:
  """Returns {name: [shape, dtype name]} of a tree's leaves."""
  return {n: [list(x.shape), str(x.dtype)] for n, x in tree.items(state)}


def check_fit(saved: Leaves, wanted: Leaves, where: str) -> None:
  """Compares the leaves of a checkpoint with those of the config's state.

  Raises:
    InputError: they differ; lists the first ten leaves and the counts.
  """
  rows: list[tuple[str, str, str, str]] = []
  for name in sorted({*saved, *wanted}):
    if name not in saved:
      near = errors.nearest(name, saved.keys() - wanted.keys())
      note = f"nearest: {near}" if near else "-"
      rows.append(("missing", name, note, _show(wanted[name])))
    elif name not in wanted:
      near = errors.nearest(name, wanted.keys() - saved.keys())
      note = f"nearest: {near}" if near else "-"
      rows.append(("unexpected", name, _show(saved[name]), note))
    else:
      have, want = saved[name], wanted[name]
      for i, kind in enumerate(("shape", "dtype")):
        if have[i] != want[i]:
          rows.append((kind, name, _show(have), _show(want)))
          break
  if not rows:
    return
  kinds = [row[0] for row in rows]
  counts = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))
  table = [("what", "leaf", "checkpoint", "config"), *rows[:_SHOWN]]
  widths = [max(len(row[i]) for row in table) for i in range(4)]
  lines = [
    "  ".join(
      cell.ljust(w) for cell, w in zip(row, widths, strict=True)
    ).rstrip()
    for row in table
  ]
  if len(rows) > _SHOWN:
    lines.append(f"... and {len(rows) - _SHOWN} more")
  raise errors.InputError(
    f"{where}: the checkpoint does not fit the config ({counts} of "
    f"{len(wanted)} leaves); use the config it was made with, or another "
    "--workdir.\n" + "\n".join(lines)
  )


def _show(leaf: Sequence[Any]) -> str:
  shape, dtype = leaf
  return f"{dtype}[{', '.join(map(str, shape))}]"


@functools.cache
def revision() -> str | None:
  """Returns the git revision of this package, "+" if changed, or None."""
  folder = pathlib.Path(__file__).parent
  git = ["git", "-C", str(folder)]
  try:
    ours = subprocess.run(
      [*git, "ls-files", "--error-unmatch", __file__],
      capture_output=True,
      timeout=10,
    )
    if ours.returncode:  # installed inside somebody else's repository
      return None
    head = subprocess.check_output(
      [*git, "rev-parse", "HEAD"], text=True, timeout=10
    )
    dirty = subprocess.check_output(
      [*git, "status", "--porcelain", "-uno"], text=True, timeout=10
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return head.strip() + ("+" if dirty.strip() else "")
