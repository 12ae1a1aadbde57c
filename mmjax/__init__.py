"""mmjax: multimodal learning in JAX and Flax."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: Any, **keywords: Any) -> Any:
  """Loads a model from a workdir of ours or from a checkpoint of another library.

  Returns:
    (model, variables, preprocess); see `mmjax.train.load`.
  """
  import importlib  # here, so that `import mmjax` does not import JAX

  module = importlib.import_module("mmjax.train.load")
  return module.load(path, **keywords)
