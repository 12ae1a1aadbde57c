"""mmjax: multimodal learning in JAX and Flax."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: Any, **keywords: Any) -> Any:
  """Loads a trained model from a workdir; see `mmjax.train.load`."""
  import importlib  # here, so that `import mmjax` does not import JAX

  module = importlib.import_module("mmjax.train.load")
  return module.load(path, **keywords)
