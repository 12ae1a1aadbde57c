"""Bad input: one paragraph that names field, value and fix; the right code.

Each case goes through the command line in this process; two go through a
process of their own, as a person would meet them.
"""

import errno
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from mmjax.cli import main as cli
from mmjax.data import pipeline
from mmjax.data.sources import emoji

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOKE = f"{ROOT}/experiments/emoji/siglip.py:smoke"
# A model that compiles in half the time; what is told does not depend on it.
SMALL = ("--config.task.model.text.depth=0",)


def train(capsys, workdir, *words, config=SMOKE):
  """Runs `mmjax train`; returns its exit code and the last stderr line."""
  argv = ["train", "--config", config, "--workdir", str(workdir), *words]
  code = cli.main(argv)
  err = capsys.readouterr().err
  told = [x for x in err.splitlines() if x.startswith("mmjax: ")]
  return code, told[-1] if told else err


@pytest.mark.parametrize(
  "words, code, says",
  [
    (["--config.steps=ten"], 2, ["config.steps", "'ten'", "int"]),
    (["--config.stepz=3"], 2, ["config.stepz", "--config.steps"]),
    (["--config.task.name=contrastve"], 2, ["contrastve", "'contrastive'"]),
    (["--config.task.model.image.name=vitt"], 2, ["'vitt'", "'vit'"]),
    (["--config.data.source.name=emojis"], 2, ["'emojis'", "'emoji'"]),
    (["--config.task.loss=sigmoidal"], 2, ["'sigmoidal'", "sigmoid"]),
    (["--config.data.source.locale=xx"], 2, ["'xx'", "locale"]),
    (["--config.data.pp=decodee|keep('image')"], 2, ["decodee", "decode"]),
    (["--config.optimizer.name=admw"], 2, ["'admw'", "'adamw'"]),
    (["--config.batch_size=12"], 2, ["config.batch_size = 12", "8 or 16"]),
    (["--config.mesh.data=64"], 2, ["64", "8", "mesh"]),
    (["--config.mesh={'dat': 8}"], 2, ["'dat'", "'data'"]),
  ],
)
def test_refused_before_any_work(capsys, tmp_path, words, code, says):
  workdir = tmp_path / "run"
  got, told = train(capsys, workdir, *words)
  assert got == code, told
  assert all(word in told for word in says), told
  # Before any long work: nothing was trained, nothing saved.
  assert not list(tmp_path.rglob("metrics.jsonl"))


def test_missing_config_file(capsys, tmp_path):
  code, told = train(
    capsys, tmp_path, config=f"{ROOT}/experiments/emoji/sig.py"
  )
  assert code == 2 and "no such file" in told and "siglip.py" in told


def test_workdir_of_another_config(capsys, tmp_path, one_device):
  short = (*SMALL, "--config.steps=1", "--config.evals={}")
  assert train(capsys, tmp_path, *short)[0] == 0
  before = (tmp_path / "metrics.jsonl").read_bytes()
  other = "--config.task.model.text.width=16"
  code, told = train(capsys, tmp_path, *short, other)
  assert code in (2, 5), told
  assert str(tmp_path) in told and "width" in told, told
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


class _Broken:
  """A source with some images that no decoder can read."""

  def __init__(self, source, broken):
    self._source, self._broken = source, broken
    self.name = source.name

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    example = dict(self._source[index])
    if index in self._broken:
      example["image"] = b"RIFF no image at all"
    return example


class _Numbers:
  """A source of as many records, each of them its number."""

  name = "numbers"

  def __init__(self, count):
    self._count = count

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    return {"number": np.int32(index)}


def _plant(monkeypatch, draws):
  """Breaks the training records of these draws; returns their numbers."""
  build, found = emoji.build, []

  def broken(*, split="train", **keywords):
    source = build(split=split, **keywords)
    if split != "train":
      return source
    # The order depends on the seed and the number of records alone.
    numbers = _Numbers(len(source))
    rows = pipeline.batches([numbers], lambda e, _: e, seed=0, global_batch=300)
    found[:] = sorted(next(rows)["number"][draws].tolist())
    return _Broken(source, found)

  # Keywords are checked by signature, so the stand-in keeps the real one.
  broken.__signature__ = inspect.signature(build)
  monkeypatch.setattr(emoji, "build", broken)
  return found


# 14 batches of 16: judged after 13 of them, 208 draws.
LONG = (
  *SMALL,
  "--config.steps=14",
  "--config.checkpoint.every=14",
  "--config.evals={}",
)


def test_a_corrupt_record_is_skipped_counted_and_reported(
  capsys, tmp_path, monkeypatch, one_device
):
  records = _plant(monkeypatch, [50, 150])  # 2 of 208: 0.96 %
  argv = ["train", "--config", SMOKE, "--workdir", str(tmp_path)]
  assert cli.main([*argv, *LONG]) == 0
  text = "".join(capsys.readouterr())
  assert re.search(r"data: 2 of 2\d\d examples were corrupt", text), text
  assert f"their records: {records}" in text


def test_more_than_one_percent_corrupt_stops_the_run(
  capsys, tmp_path, monkeypatch, one_device
):
  records = _plant(monkeypatch, [50, 100, 150])  # 3 of 208: 1.4 %
  code, told = train(capsys, tmp_path, *LONG)
  assert code == 3, told
  assert "3 of 208 examples (1.4%) are corrupt" in told
  assert ", ".join(map(str, records)) in told


@pytest.mark.slow  # a corrupt record in training is counted below
def test_corrupt_images_of_the_evaluation(
  capsys, tmp_path, monkeypatch, one_device
):
  build, broken = emoji.build, [5]

  def damaged(*, split="train", **keywords):
    made = build(split=split, **keywords)
    return made if split == "train" else _Broken(made, broken)

  damaged.__signature__ = inspect.signature(build)
  monkeypatch.setattr(emoji, "build", damaged)
  assert train(capsys, tmp_path / "one", *SMALL)[0] == 0
  found = json.loads((tmp_path / "one" / "results.json").read_text())
  counts = {k: v for k, v in found.items() if "corrupt" in k}
  names = ("concepts", "groups", "pixel_neighbour")
  assert counts == {f"{name}/corrupt_records": 1.0 for name in names}
  broken += range(10, 30)
  code, told = train(capsys, tmp_path / "many", *SMALL)
  assert code == 3 and "are corrupt" in told and "numbers 5, 10, 11" in told


def test_a_full_disk_at_save(capsys, tmp_path, monkeypatch, one_device):
  from mmjax.train import checkpoint

  def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

  monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
  code, told = train(capsys, tmp_path, *SMALL)
  assert code == 5 and "no space left" in told and str(tmp_path) in told


def _process(*argv):
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  return subprocess.run(
    [sys.executable, "-m", "mmjax", *argv],
    env=env,
    capture_output=True,
    text=True,
    cwd=ROOT,
  )


def test_a_person_sees_one_line_and_no_traceback(tmp_path):
  done = _process(
    *("train", "--config", SMOKE, "--workdir", str(tmp_path / "run")),
    "--config.optimizer.lrr=1",
  )
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert "--config.optimizer.lr?" in done.stderr
  assert "Traceback" not in done.stderr


def test_a_mesh_larger_than_this_machine(tmp_path):
  done = _process(
    *("train", "--config", SMOKE, "--workdir", str(tmp_path / "run")),
    "--config.mesh.data=1024",
  )
  assert done.returncode == 2 and "1024" in done.stderr
  assert "Traceback" not in done.stderr
