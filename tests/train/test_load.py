"""A model from a workdir computes what the run's task computes.

One from a foreign checkpoint computes what its table says.
"""

import importlib.util
import json
import pathlib

import cv2
import jax
import numpy as np
import pytest

import mmjax
from mmjax import errors
from mmjax.build import build
from mmjax.cli import config as configs
from mmjax.train import checkpoint, setup
from mmjax.train import workdir as workdirs
from mmjax.train.validate import resolve

ROOT = pathlib.Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location(
  "tiny", ROOT / "tests" / "weights" / "tiny.py"
)
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A workdir with a checkpoint, and its run and state."""
  folder = tmp_path_factory.mktemp("run")
  config = configs.load(f"{ROOT}/experiments/emoji/siglip.py:smoke", [])
  config.unlock()
  config.tokenizers = {"emoji": {"kind": "bytes"}}
  config.task.model.text.vocab_size = None
  # Images keep their 64 pixels: a test has its own, of that size.
  config.data.pp = config.data.pp.replace("|resize(32)", "")
  config.evals.concepts.image_pp = "decode|keep('image')"
  config.optimizer.ema_decay = 0.5
  config.task.model.image.depth = config.task.model.text.depth = 1
  config = resolve(config)
  # One device: compiled for eight it takes ten times as long here.
  run = setup.setup(config, workdir=str(folder), devices=jax.devices()[:1])
  workdirs.claim(folder, config)
  state = run.init()
  # The average is another than the parameters: that it is which counts.
  state = state.replace(ema={**state.ema, "text": _scaled(state.ema["text"])})
  with checkpoint.Checkpoints(folder / "checkpoints") as saves:
    saves.save(1, state)
  return folder, run, state


def _scaled(tree):
  return jax.tree.map(lambda x: x * 1.5, tree)


def test_the_same_embeddings_however_an_image_is_given(saved, tmp_path):
  folder, run, state = saved
  model, variables, preprocess = mmjax.load(folder)

  example = build("data.sources", name="emoji", split="test")[7]
  pixels = cv2.imdecode(np.frombuffer(example["image"], np.uint8), 1)[..., ::-1]
  (tmp_path / "it.webp").write_bytes(example["image"])
  batch = preprocess(
    image=[
      example["image"],
      tmp_path / "it.webp",
      np.ascontiguousarray(pixels),
    ],
    text=["a cat", "a dog"],
  )
  assert batch["image"].shape == (3, 64, 64, 3)
  assert batch["image"].min() >= -1 and batch["image"].max() <= 1
  image, text, scale = jax.jit(model.apply)(variables, **batch)
  assert float(scale.t) == pytest.approx(10.0)

  with run.layout.use():
    predict = {k: jax.jit(f) for k, f in run.task.predict.items()}
    want = predict["image"](
      state.variables(), {"image": np.stack([pixels] * 3)}
    )
    words = predict["text"](state.variables(), {"text": batch["text"]})
    raw = predict["text"](state.variables(ema=False), {"text": batch["text"]})
  np.testing.assert_allclose(image, want, atol=1e-5)
  np.testing.assert_allclose(text, words, atol=1e-5)
  assert np.abs(np.asarray(text) - raw).max() > 1e-3


def test_mistakes(saved, tmp_path):
  folder, run, _ = saved
  with pytest.raises(errors.InputError, match="no weights in it"):
    mmjax.load(tmp_path)
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(errors.InputError, match=r"no config\.json"):
    mmjax.load(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(errors.InputError, match=r"config\.json is damaged"):
    mmjax.load(tmp_path)
  with pytest.raises(errors.StorageError, match=r"there are \[1\]"):
    mmjax.load(folder, step=5)
  from mmjax.train.load import Preprocess

  preprocess = Preprocess.of(run)
  with pytest.raises(errors.InputError, match="Did you mean 'image'"):
    preprocess(images=["x.png"])
  with pytest.raises(errors.InputError, match=r"'x\.png': no such file"):
    preprocess(image=["x.png"])
  with pytest.raises(errors.InputError, match="there are none"):
    preprocess(text=[])
  images = [np.zeros((size, 8, 3), np.uint8) for size in (8, 9)]
  with pytest.raises(errors.InputError, match="differ in size"):
    preprocess(image=images)


def test_a_foreign_checkpoint(tmp_path):
  tiny.hub(tmp_path)
  model, variables, preprocess = mmjax.load(tmp_path)
  image = np.zeros((2, 24, 16, 3), np.float32)
  logits, _ = jax.jit(model.apply)(variables, image=image)
  assert logits.shape == (2, 5)
  with pytest.raises(errors.InputError) as caught:
    preprocess(image=[np.zeros((24, 16, 3), np.uint8)])
  assert "give arrays to the model yourself" in str(caught.value)
  assert "image = float32 [B 24 16 3]" in str(caught.value)
  with pytest.raises(errors.InputError, match="Did you mean 'image'"):
    preprocess(images=[])
  with pytest.raises(errors.InputError, match=r"step=3.*only a workdir"):
    mmjax.load(tmp_path, step=3)


def test_a_foreign_checkpoint_whose_front_end_is_known(tmp_path):
  tiny.hub(tmp_path)
  said = dict(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
  model, variables, preprocess = mmjax.load(tmp_path)
  pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
  batch = preprocess(image=[pixels])
  want = (pixels[None] / 255 - 0.5) / 0.5
  np.testing.assert_allclose(batch["image"], want, atol=1e-6)
  jax.jit(model.apply)(variables, **batch)
