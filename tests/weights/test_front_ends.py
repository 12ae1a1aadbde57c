"""What the files beside the weights say of inputs."""

import dataclasses
import io
import json
import pathlib

import jax
import numpy as np
import pytest
import sentencepiece
import tokenizers as hf
from safetensors.numpy import save_file

import mmjax
from mmjax import errors
from mmjax.layers.generate import generate
from mmjax.weights import files, front_ends
from mmjax.weights.recipe import Recipe

HALVES = "normalise([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])"


def recipe(**fields):
  inputs = {"image": ((1, 8, 6, 3), "float32"), "text": ((1, 9), "int32")}
  return Recipe("x", {}, inputs, [], {}, **fields)


def checkpoint(path, **preprocessor):
  return files.Checkpoint(path, {}, {"model_type": "vit"}, preprocessor)


def test_a_recipe_is_completed(tmp_path):
  found = front_ends.complete(
    recipe(texts={"text": 9}), checkpoint(tmp_path, do_resize=False)
  )
  assert found.preprocess == {
    "image": f"open_rgb|{HALVES}|keep('image')",
    "text": "tokenize_as_trained('text', 'text', length=9)|keep('text')",
  }
  assert found.tokenizers == {"text": {"kind": "hub", "path": str(tmp_path)}}
  assert found.missing == {}


def test_the_size_of_the_vocabulary_is_the_models(tmp_path):
  for model in (dict(vocab_size=5), dict(text=dict(vocab_size=5), image={})):
    given = dataclasses.replace(recipe(texts={"text": 9}), model=model)
    found = front_ends.complete(given, checkpoint(tmp_path))
    assert "length=9, vocab_size=5)" in found.preprocess["text"]


def test_what_is_missing_says_why_and_the_way_out(tmp_path):
  found = front_ends.complete(recipe(), checkpoint(tmp_path, do_solarize=True))
  assert found.preprocess == {}
  assert "do_solarize = True" in found.missing["image"]
  assert "image = float32 [B 8 6 3]" in found.missing["image"]
  assert "no operations that prepare text" in found.missing["text"]
  assert "text = int32 [B 9]" in found.missing["text"]
  found = front_ends.complete(recipe(), checkpoint(tmp_path))
  assert "no preprocessor_config.json" in found.missing["image"]


def test_what_a_table_said_stays():
  given = recipe(
    preprocess={"image": "decode"},
    texts={"text": 9},
    missing={"text": "it is secret."},
  )
  found = front_ends.complete(given, checkpoint(pathlib.Path("model.npz")))
  assert found.preprocess == {"image": "decode"}
  assert found.missing["text"].startswith("preprocess text: it is secret. Or")


def test_masks_and_prompts_are_of_the_models_names(tmp_path):
  given = dataclasses.replace(
    recipe(texts={"text": 9}), masks={"text": "there"}
  )
  found = front_ends.complete(given, checkpoint(tmp_path))
  assert found.preprocess["text"].endswith(
    ", mask='there')|keep('text', 'there')"
  )
  given = dataclasses.replace(
    recipe(prompts={"text": "more"}), model=dict(language=dict(vocab_size=7))
  )
  found = front_ends.complete(given, checkpoint(tmp_path))
  assert found.preprocess["text"] == (
    "prompt_as_trained('text', 'text', suffix='more', vocab_size=7)"
  )
  assert found.tokenizers["text"]["path"] == str(tmp_path)


GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
WORDS = ["two", "red", "cats", "dog", "a"]


def directory(folder, case, config=None, **files_):
  """Writes a recorded model as the hub does, and JSON files beside it."""
  with np.load(GOLDEN / f"{case}.npz") as file:
    said = json.loads(str(file["config"]))
    tensors = {
      k.removeprefix("tensor/"): file[k]
      for k in file.files
      if k.startswith("tensor/")
    }
  save_file(tensors, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps({**said, **(config or {})}))
  for name, content in files_.items():
    (folder / f"{name}.json").write_text(json.dumps(content))
  return folder


def pictures(*sizes):
  rng = np.random.default_rng(4)
  return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def test_a_directory_of_vilt_prepares_images_of_several_sizes(tmp_path):
  (tmp_path / "vocab.txt").write_text(
    "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
  )
  directory(
    tmp_path,
    "vilt_answers",
    preprocessor_config=dict(
      image_processor_type="ViltImageProcessor", size=16, size_divisor=4
    ),
  )
  model, variables, prepare = mmjax.load(tmp_path)
  apply = jax.jit(model.apply)
  images, texts = pictures((9, 14), (13, 9), (8, 8)), ["two cats", "a", "dog"]
  batch = prepare(image=images, tokens=texts)
  assert batch.keys() == {"image", "pixel_mask", "tokens", "mask"}
  assert batch["image"].shape == (3, 20, 24, 3)
  assert batch["pixel_mask"].any(2).sum(1).tolist() == [16, 20, 16]
  assert batch["pixel_mask"].any(1).sum(1).tolist() == [24, 16, 16]
  assert batch["mask"].sum(1).tolist() == [4, 3, 3]
  together = apply(variables, **batch)
  # The last image is padded on both sides.
  alone = apply(variables, **prepare(image=images[2], tokens=texts[2]))
  np.testing.assert_allclose(together[0][2], alone[0][0], rtol=0, atol=1e-4)
  np.testing.assert_allclose(
    together[1]["answers"][2], alone[1]["answers"][0], rtol=0, atol=1e-4
  )
  # The mask is what makes them alike.
  batch["pixel_mask"] = np.ones_like(batch["pixel_mask"])
  blind = apply(variables, **batch)
  assert np.abs(blind[0][2] - alone[0][0]).max() > 1e-2


def naflex(case, folder):
  said = dict(patch_size=4, max_num_patches=13)
  loaded = mmjax.load(directory(folder, case, preprocessor_config=said))
  return *loaded[:2], loaded.preprocess(image=pictures((9, 14), (30, 9)))


def test_a_directory_of_naflex_prepares_patches(tmp_path):
  model, variables, batch = naflex("siglip2_naflex_image", tmp_path)
  assert batch.keys() == {"image", "mask", "shapes"}
  assert batch["image"].shape == (2, 13, 48)
  assert batch["mask"].sum(1).tolist() == batch["shapes"].prod(1).tolist()
  apply = jax.jit(model.apply)
  found = apply(variables, **batch)[0]
  rows, columns = batch["shapes"][1]
  assert rows > columns and rows * columns < 13
  whole = batch["image"][1, : rows * columns]
  whole = whole.reshape(rows, columns, 4, 4, 3).swapaxes(1, 2)
  whole = whole.reshape(1, rows * 4, columns * 4, 3)
  want = apply(variables, image=whole)[0]
  np.testing.assert_allclose(found[1], want[0], rtol=0, atol=1e-4)


def test_patches_for_a_dual_encoder_have_its_names(tmp_path):
  model, variables, batch = naflex("siglip2_naflex", tmp_path)
  assert batch.keys() == {"image", "image_mask", "image_shapes"}
  text = np.ones((2, 9), np.int32)
  found = jax.eval_shape(
    lambda given: model.apply(variables, text=text, **given), batch
  )
  assert found[0].shape[0] == 2


def test_a_file_of_other_patches_than_the_models_is_named(tmp_path):
  directory(tmp_path, "siglip2_naflex", preprocessor_config=dict(patch_size=8))
  with pytest.raises(errors.InputError, match=r"patch_size = 8.*\[B 25 48\]"):
    mmjax.load(tmp_path).preprocess(image=pictures((9, 9)))


def tokenizer_json(folder):
  vocab = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", "\u2581", *WORDS]
  tokens = dict.fromkeys([*vocab, *"".join(WORDS)])
  model = hf.models.BPE(
    {token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>"
  )
  pipeline = hf.Tokenizer(model)
  pipeline.add_special_tokens(vocab[:4])
  pipeline.save(str(folder / "tokenizer.json"))


def tokenizer_model(folder):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([" ".join(WORDS)] * 9),
    model_writer=model,
    vocab_size=40,
    model_type="bpe",
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    user_defined_symbols=["\n"],
    add_dummy_prefix=False,
    normalization_rule_name="identity",
    minloglevel=2,
  )
  (folder / "tokenizer.model").write_bytes(model.getvalue())


@pytest.mark.parametrize("write", [tokenizer_json, tokenizer_model])
def test_a_directory_of_paligemma_prepares_prompts(write, tmp_path):
  write(tmp_path)
  directory(
    tmp_path,
    "paligemma",
    preprocessor_config=dict(
      image_processor_type="SiglipImageProcessor",
      size=dict(height=24, width=24),
      image_seq_length=9,
    ),
  )
  model, variables, prepare = mmjax.load(tmp_path)
  apply = jax.jit(model.apply)
  given = dict(
    image=pictures((9, 14), (30, 9)),
    tokens=["two red cats", "<image>a"],
    suffix=["cats", "a dog"],
  )
  batch = prepare(**given)
  assert batch.keys() == {"image", "tokens", "mask", "suffix"}
  assert batch["mask"].all(1).tolist() == [True, False]
  found = jax.eval_shape(lambda x: model.apply(variables, **x), batch)
  assert found[0].shape == (*batch["tokens"].shape, 50)
  if write is tokenizer_model:
    return
  logits = apply(variables, **batch)[0][1]
  alone = prepare(**{k: v[1] for k, v in given.items()})
  np.testing.assert_allclose(
    logits[batch["mask"][1] == 1],
    apply(variables, **alone)[0][0],
    rtol=0,
    atol=1e-4,
  )
  del given["suffix"]
  prompts = prepare(**given)
  assert prompts.keys() == {"image", "tokens", "mask"}
  ids = generate(
    model, variables, prompts.pop("tokens"), prompts, length=20, eos_ids=(1,)
  )
  said = prepare.texts(ids)
  assert len(said) == 2 and "cats" in said[0] and "a" in said[1]
