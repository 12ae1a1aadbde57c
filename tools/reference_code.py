"""Imports reference code that is no package, or wants torchvision.

Clones of these repositories are taken from the folder that the environment's
REFERENCES names: huggingface/pytorch-image-models, mlfoundations/open_clip,
facebookresearch/mae, facebookresearch/dinov2, YuanGongND/ast and
CompVis/taming-transformers. The commits that golden files were made with:
tools/golden/reference_commits.txt. Packages are entered past their
`__init__.py`, which import all they have; of torchvision stand-ins are given
for what their modules import and the cases never call.
"""

import importlib
import os
import pathlib
import sys
import types
from typing import Any

# Where Python finds a package within its clone.
_PACKAGES = {
  "timm": "pytorch-image-models/timm",
  "timm.models": "pytorch-image-models/timm/models",
  "open_clip": "open_clip/src/open_clip",
}
_TORCHVISION = (
  "",
  ".ops",
  ".ops.misc",
  ".transforms",
  ".transforms.functional",
)


def clone(name: str) -> pathlib.Path:
  """Returns the folder of a clone; raises FileNotFoundError without one."""
  found = pathlib.Path(os.environ.get("REFERENCES", ".")) / name
  if not found.is_dir():
    raise FileNotFoundError(
      f"{found}: set REFERENCES to a folder with a clone of {name}."
    )
  return found


def script(name: str, folder: str) -> Any:
  """Imports a file that is no package's, by its name within a clone."""
  sys.path.insert(0, str(clone(folder)))
  try:
    return importlib.import_module(name)
  finally:
    del sys.path[0]


def module(name: str) -> Any:
  """Imports a module of timm or open_clip without their `__init__.py`."""
  torch = importlib.import_module("torch")
  for part in _TORCHVISION:
    stand_in(f"torchvision{part}")
  misc = stand_in("torchvision.ops.misc")
  misc.FrozenBatchNorm2d = torch.nn.BatchNorm2d
  for package, path in _PACKAGES.items():
    made = stand_in(package, clone(path.split("/")[0]).parent / path)
    vars(made).setdefault("__version__", "0")
  data = stand_in("timm.data", clone("pytorch-image-models") / "timm/data")
  constants = importlib.import_module("timm.data.constants")
  vars(data).update(vars(constants) | {"__path__": data.__path__})
  return importlib.import_module(name)


def stand_in(name: str, path: pathlib.Path | None = None) -> Any:
  """Returns the module of a name, an empty one if there is none yet."""
  if name not in sys.modules:
    made = types.ModuleType(name)
    made.__path__ = [] if path is None else [str(path)]
    sys.modules[name] = made
    parent, _, leaf = name.rpartition(".")
    if parent:
      setattr(sys.modules[parent], leaf, made)
  return sys.modules[name]
