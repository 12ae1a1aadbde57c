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
from PIL import Image
from safetensors.numpy import save_file

import mmjax
from mmjax import errors, weights
from mmjax.build import build
from mmjax.cli import config as configs
from mmjax.train import checkpoint, setup
from mmjax.train import workdir as workdirs
from mmjax.train.load import of_run
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
  config = configs.load(
    f"{ROOT}/experiments/emoji/siglip.py:smoke,image=vit", []
  )
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
  preprocess = of_run(run)
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
  assert "no preprocessor_config.json" in str(caught.value)
  assert "give arrays to the model yourself" in str(caught.value)
  assert "image = float32 [B 24 16 3]" in str(caught.value)
  with pytest.raises(errors.InputError, match="Did you mean 'image'"):
    preprocess(images=[])
  with pytest.raises(errors.InputError, match=r"step=3.*only a workdir"):
    mmjax.load(tmp_path, step=3)


def test_a_foreign_checkpoint_whose_front_end_is_known(tmp_path):
  tiny.hub(tmp_path)
  said = dict(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
  said["image_processor_type"] = "ViTImageProcessor"
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
  model, variables, preprocess = mmjax.load(tmp_path)
  pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
  batch = preprocess(image=[pixels])
  want = (pixels[None] / 255 - 0.5) / 0.5
  np.testing.assert_allclose(batch["image"], want, atol=1e-6)
  jax.jit(model.apply)(variables, **batch)


# Of CLIP's tokens only a few letters, three merges and the two ends.
LETTERS = "acdghot"
MERGES = ["a t</w>", "c at</w>", "d o"]
START, END = 48, 40


def clip_folder(folder):
  """Lays the recorded CLIP out as the hub does, with a small vocabulary."""
  config, tensors = {}, {}
  with np.load(ROOT / "tests" / "golden" / "clip_quick_gelu.npz") as file:
    config = json.loads(str(file["config"]))
    for key in file.files:
      kind, _, name = key.partition("/")
      if kind == "tensor":
        tensors[name] = file[key]
  save_file(tensors, folder / "model.safetensors")
  tokens = [*LETTERS, *(f"{x}</w>" for x in LETTERS)]
  tokens += [m.replace(" ", "") for m in MERGES]
  vocab = {token: i for i, token in enumerate(tokens)}
  vocab |= {"<|startoftext|>": START, "<|endoftext|>": END}
  image = dict(
    image_processor_type="CLIPImageProcessor",
    size={"shortest_edge": 24},
    crop_size={"height": 24, "width": 24},
  )
  for name, content in (
    ("config.json", json.dumps(config)),
    ("vocab.json", json.dumps(vocab)),
    ("merges.txt", "\n".join(["#version: 0.2", *MERGES])),
    ("processor_config.json", json.dumps(dict(image_processor=image))),
    ("tokenizer_config.json", json.dumps(dict(pad_token="<|endoftext|>"))),
  ):
    (folder / name).write_text(content)
  return folder


def test_clip_in_ten_lines(tmp_path):
  path = clip_folder(tmp_path)
  noise = np.random.default_rng(3).integers(0, 256, (31, 47, 3), np.uint8)
  photo = Image.fromarray(noise)
  photo.save(tmp_path / "photo.png")

  model, variables, preprocess = mmjax.load(path)
  captions = ["a cat", "a dog", "a hat"]
  batch = preprocess(image=tmp_path / "photo.png", text=captions)
  image, text, _ = jax.jit(model.apply)(variables, **batch)
  best = captions[(image @ text.T).argmax()]

  # By hand: Pillow's resizing, the mean and deviation of CLIP, the ids.
  small = np.asarray(photo.resize((36, 24), Image.Resampling.BICUBIC))[:, 6:30]
  mean = [0.48145466, 0.4578275, 0.40821073]
  std = [0.26862954, 0.26130258, 0.27577711]
  pixels = ((small / 255 - mean) / std).astype(np.float32)[None]
  np.testing.assert_allclose(batch["image"], pixels, atol=1e-6)
  ids = np.full((3, 11), END)
  # "dog" is "do" and "g</w>"; "hat" is "h" and "at</w>".
  for row, word in zip(ids, ([15], [16, 10], [4, 14]), strict=True):
    row[: 2 + len(word)] = [START, 7, *word]
  np.testing.assert_array_equal(batch["text"], ids)
  assert batch["text"].dtype == np.int32
  image, text, _ = jax.jit(model.apply)(variables, image=pixels, text=ids)
  scores = np.asarray(image @ text.T)[0]
  assert best == captions[scores.argmax()]
  assert np.diff(np.sort(scores)).min() > 1e-3


def test_a_tokenizer_that_is_not_known_is_named_when_text_is_wanted(tmp_path):
  path = clip_folder(tmp_path)
  said = json.dumps(dict(tokenizer_class="ClapTokenizer"))
  (tmp_path / "tokenizer_config.json").write_text(said)
  preprocess = weights.load(path).preprocess
  batch = preprocess(image=np.zeros((24, 24, 3), np.uint8))
  assert batch["image"].shape == (1, 24, 24, 3)
  with pytest.raises(
    errors.InputError, match=r"'ClapTokenizer'.*CLIPTokenizer"
  ):
    preprocess(text="a cat")
