"""Records outputs of the reference implementations, in tests/golden/*.npz.

  pip install torch==2.13.0 && pip install transformers==5.23.0
  python tools/make_golden.py            # all cases
  python tools/make_golden.py vit clip   # those of tools/golden/vit.py, clip.py

A case is a tiny model of random size-odd configuration whose parameters are
all drawn anew (default initialisers hide errors: zero biases, unit scales). The
file holds its config, tensors, our inputs and the reference's outputs:

  config            JSON of config.json
  tensor/<name>     what model.safetensors holds
  input/<argument>  of our model's call
  output/<path>     of the reference, where <path> leads through our outputs:
                    "0", "1/tokens"; "." is the whole; NaN is not compared

A model that decodes also holds, for each way <name> of decoding,

  generate/<name>/settings  JSON of `mmjax.ops.decoding.Settings`, without
                            settings that are the default
  generate/<name>/prompt    int32 [B P], what the decoder begins with
  generate/<name>/ids       of the reference, prompt included
  generate/<name>/<input>   every other argument of the model's `start`

`tests/test_golden.py` finds every file.
"""

import importlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent
FOLDER = ROOT.parent / "tests" / "golden"


def redraw(model: Any, seed: int = 0) -> Any:
  """Draws every parameter and statistic anew; returns the model in eval mode.

  Matrices keep the size of what they multiply, vectors are far from 0 and 1.
  """
  import torch  # pyright: ignore[reportMissingImports]

  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
      if not value.is_floating_point():
        continue
      noise = torch.randn(value.shape, generator=generator)
      if value.ndim < 2:
        # Scales of norms are positive on average, variances always.
        positive = "norm" in name.lower() and name.endswith("weight")
        value.copy_(0.3 * noise + (1.0 if positive else 0.0))
        if name.endswith("running_var"):
          value.copy_(1 + noise.abs())
      else:
        fan_in = value[0].numel()
        value.copy_(noise / fan_in**0.5)
  return model.eval()


def save(
  name: str,
  config: Mapping[str, Any],
  tensors: Mapping[str, Any],
  inputs: Mapping[str, np.ndarray],
  outputs: Mapping[str, Any],
  generate: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
  """Writes one case; tensors and outputs may be torch's.

  `generate` holds what `generate/<name>/...` shall hold, settings as a dict.
  """

  def array(x: Any) -> np.ndarray:
    return x.detach().numpy() if hasattr(x, "detach") else np.asarray(x)

  FOLDER.mkdir(exist_ok=True)
  np.savez_compressed(
    FOLDER / f"{name}.npz",
    allow_pickle=False,
    config=np.array(json.dumps(config, sort_keys=True, default=str)),
    **{f"tensor/{k}": array(v) for k, v in tensors.items()},
    **{f"input/{k}": array(v) for k, v in inputs.items()},
    **{f"output/{k}": array(v) for k, v in outputs.items()},
    **{
      f"generate/{name}/{k}": np.array(json.dumps(v))
      if k == "settings"
      else array(v)
      for name, found in (generate or {}).items()
      for k, v in found.items()
    },
  )
  size = (FOLDER / f"{name}.npz").stat().st_size
  print(f"{name}: {len(tensors)} tensors, {size / 1024:.0f} KiB")


def save_hub(
  name: str,
  model: Any,
  inputs: Mapping[str, np.ndarray],
  outputs: Mapping[str, Any],
  generate: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
  """Writes a case of the model hub, with the names that its files have.

  Modules were renamed in transformers 5, files were not.
  """
  import safetensors.numpy

  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    path = pathlib.Path(folder)
    config = json.loads((path / "config.json").read_text())
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
  save(name, config, tensors, inputs, outputs, generate)


# Our settings of decoding -> the hub's, where the names differ.
SETTINGS = dict(
  length="max_length",
  eos_ids="eos_token_id",
  pad_id="pad_token_id",
  beams="num_beams",
  sample="do_sample",
  min_new="min_new_tokens",
  forced_bos="forced_bos_token_id",
  forced_eos="forced_eos_token_id",
  suppress="suppress_tokens",
  begin_suppress="begin_suppress_tokens",
  no_repeat="no_repeat_ngram_size",
)


def hub_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns our settings of decoding as keywords of the hub's `generate`."""
  said = {SETTINGS.get(k, k): v for k, v in settings.items()}
  said["eos_token_id"] = said.get("eos_token_id") or None
  return {"do_sample": False, **said}


def images(shape: Sequence[int], seed: int = 1) -> np.ndarray:
  """Draws images [B Y X C] of about unit size."""
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def main(argv: Sequence[str]) -> None:
  """Makes the cases of the named families, or of all."""
  sys.path.insert(0, str(ROOT))
  sys.modules["make_golden"] = sys.modules[__name__]
  known = sorted(p.stem for p in (ROOT / "golden").glob("*.py"))
  for name in argv or known:
    importlib.import_module(f"golden.{name}").make()


if __name__ == "__main__":
  main(sys.argv[1:])
