"""The recorded tokenizer folders of tests/golden/front/texts.npz."""

import json
import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "front" / "texts.npz"
with np.load(GOLDEN) as file:
  _RECORDED = {name: file[name] for name in file.files}
TEXTS = json.loads(str(_RECORDED["texts"]))
CASES = json.loads(str(_RECORDED["cases"]))


def write(case, folder, *, without=(), **changes):
  """Writes the folder of a case; returns it.

  Args:
    case: name.
    folder: to write to.
    without: names of files that are left out.
    **changes: fields of tokenizer_config.json.
  """
  folder.mkdir(exist_ok=True)
  for name, number in CASES[case]["files"].items():
    if name not in without:
      data = _RECORDED[f"file/{number}"].tobytes()
      (folder / name).write_bytes(data)
  if changes:
    path = folder / "tokenizer_config.json"
    said = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(said))
  return folder


def outputs(case):
  """Returns what the reference made of each text; see the recorder."""
  return json.loads(str(_RECORDED[f"output/{case}"]))
