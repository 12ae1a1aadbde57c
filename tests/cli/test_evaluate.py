"""`mmjax evaluate` repeats the numbers of the training's last evaluation."""

import json
import pathlib
import shutil

import pytest

from mmjax.cli import config as configs
from mmjax.cli import main as cli

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMOKE = f"{ROOT}/experiments/emoji/siglip.py:smoke"
SMALL = (  # compiles in half the time
  "--config.task.model.text.depth=0",
)


def test_newest_checkpoint_gives_the_numbers_of_the_training(
  tmp_path, capsys, one_device
):
  workdir, out = tmp_path / "run", tmp_path / "found.json"
  evals = configs.load(SMOKE).evals.to_dict()
  del evals["pixel_neighbour"]  # reads no parameter
  words = ["--config", SMOKE, f"--config.evals={evals}", *SMALL]
  words += ["--workdir", str(workdir)]
  assert cli.main(["train", *words]) == 0
  rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  trained = {}
  for row in rows:
    if row.get("kind") == "eval":
      trained.update(row)
  capsys.readouterr()
  # What the run, were it alive, would just be saving.
  half = workdir / "checkpoints" / "3.orbax-checkpoint-tmp"
  shutil.copytree(workdir / "checkpoints" / "2", half)
  before = sorted(workdir.rglob("*"))
  assert cli.main(["evaluate", *words, "--json", str(out)]) == 0
  found = json.loads(out.read_text())
  assert found and found == {k: trained[k] for k in found}
  text = capsys.readouterr().out
  assert text.startswith("step 2\n") and all(name in text for name in found)
  assert half.is_dir() and sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize(
  "words, says",
  [
    (["--config", SMOKE], "no checkpoints"),
    (["--config", SMOKE, "--config.evals={}"], "config.evals is empty"),
  ],
)
def test_nothing_to_evaluate(tmp_path, capsys, words, says):
  if "evals" in says:
    (tmp_path / "checkpoints").mkdir()
  assert cli.main(["evaluate", *words, "--workdir", str(tmp_path)]) == 2
  assert says in capsys.readouterr().err
