import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, weights

CASES = ("bert_encoder", "bert_pretraining", "roberta_masked_words")


def close(out, want):
  for path, value in want.items():
    got = out[0] if path == "0" else out[1][path.split("/")[1]]
    scale = np.abs(value).max()
    np.testing.assert_allclose(got, value, atol=1e-4 * scale, err_msg=path)


def renamed(tensors, old, new):
  for name in [n for n in tensors if old in n]:
    tensors[name.replace(old, new)] = tensors.pop(name)


@pytest.mark.parametrize("name", ["bert_encoder", "bert_pretraining"])
def test_old_names_of_norms(recorded, name):
  def change(tensors):
    renamed(tensors, "LayerNorm.weight", "LayerNorm.gamma")
    renamed(tensors, "LayerNorm.bias", "LayerNorm.beta")

  loaded, out, want = recorded(name, tensors=change)
  close(out, want)
  assert any(r.theirs.endswith("gamma") for r in loaded.recipe.rules)


def test_with_and_without_a_prefix(recorded):
  def add(tensors):
    for name in list(tensors):
      tensors[f"bert.{name}"] = tensors.pop(name)

  close(*recorded("bert_encoder", tensors=add)[1:])

  def remove(tensors):
    renamed(tensors, "roberta.", "")

  close(*recorded("roberta_masked_words", tensors=remove)[1:])


@pytest.mark.parametrize("name", ["bert_pretraining", "roberta_masked_words"])
def test_buffers_and_copies_of_tied_weights_are_ignored(recorded, name):
  def change(tensors):
    p = "bert." if name.startswith("bert") else "roberta."
    head = "cls.predictions." if name.startswith("bert") else "lm_head."
    tensors[f"{p}embeddings.position_ids"] = np.arange(15)[None]
    tensors[f"{p}embeddings.token_type_ids"] = np.zeros((1, 15), np.int64)
    table = tensors[f"{p}embeddings.word_embeddings.weight"]
    tensors[f"{head}decoder.weight"] = table.copy()
    tensors[f"{head}decoder.bias"] = tensors[f"{head}bias"].copy()

  close(*recorded(name, tensors=change)[1:])


@pytest.mark.parametrize("name", CASES)
def test_heads_are_there_where_their_tensors_are(recorded, name):
  def change(tensors):
    for head in ("cls.", "lm_head.", "pooler."):
      for tensor in [t for t in tensors if head in t]:
        del tensors[tensor]

  _, out, want = recorded(name, tensors=change)
  close(out, {"0": want["0"]})
  assert out[1] == {}


@pytest.mark.parametrize(
  "field, value",
  [
    ("hidden_act", "gelu_new"),
    ("layer_norm_eps", 1e-2),
    ("num_attention_heads", 6),
  ],
)
def test_the_config_decides(recorded, field, value):
  _, out, want = recorded(
    "bert_encoder", lambda config: config.update({field: value})
  )
  # Twice what a golden case lets pass.
  assert np.abs(out[0] - want["0"]).max() > 2e-4 * np.abs(want["0"]).max()


def test_padding_of_roberta_decides_its_positions(recorded):
  _, out, want = recorded(
    "roberta_encoder", lambda config: config.update(pad_token_id=2)
  )
  assert np.abs(out[0] - want["0"]).max() > 1e-2


@pytest.mark.parametrize(
  "name, field, value",
  [
    ("bert_encoder", "hidden_act", "xielu"),
    ("bert_encoder", "position_embedding_type", "relative_key"),
    ("bert_encoder", "add_cross_attention", True),
    ("bert_encoder", "pruned_heads", {"0": [1]}),
    ("roberta_masked_words", "pad_token_id", None),
  ],
)
def test_what_we_cannot_follow_is_named(recorded, name, field, value):
  with pytest.raises(errors.InputError, match=field):
    recorded(name, lambda config: config.update({field: value}))


def test_a_decoder_sees_what_is_before(recorded):
  def change(config):
    config["is_decoder"] = True

  loaded, out, want = recorded("bert_masked_words", change)
  assert loaded.recipe.model["causal"]
  assert np.abs(out[1]["logits"] - want["1/logits"]).max() > 1e-2


def test_an_untied_head_has_its_own_kernel_and_bias(recorded):
  def config(found):
    found["tie_word_embeddings"] = False

  def tensors(found):
    head = "cls.predictions."
    table = found["bert.embeddings.word_embeddings.weight"]
    found[f"{head}decoder.weight"] = 2 * table
    found[f"{head}decoder.bias"] = 0 * found[f"{head}bias"]

  loaded, out, want = recorded("bert_masked_words", config, tensors)
  bias = loaded.recipe.kept["cls.predictions.bias"]
  np.testing.assert_allclose(
    out[1]["logits"] / 2 + bias[None, None], want["1/logits"], atol=1e-4
  )
  with pytest.raises(errors.InputError, match=r"predictions.decoder.weight"):
    recorded("bert_masked_words", config)


@pytest.mark.parametrize(
  "field, value, tensor",
  [
    ("vocab_size", 54, "word_embeddings"),
    ("max_position_embeddings", 16, "position_embeddings"),
    ("intermediate_size", 45, "intermediate"),
    ("num_hidden_layers", 2, "layer.2"),
  ],
)
def test_sizes_of_other_weights_are_refused(recorded, field, value, tensor):
  with pytest.raises(errors.InputError, match=tensor):
    recorded("bert_encoder", lambda config: config.update({field: value}))


def sentences(folder, pool, modules=("Transformer", "Pooling", "Normalize")):
  """Lays sentence-transformers' files beside a model."""
  found = [
    {
      "idx": i,
      "name": str(i),
      "path": f"{i}_{kind}" if i else "",
      "type": f"sentence_transformers.models.{kind}",
    }
    for i, kind in enumerate(modules)
  ]
  (folder / "modules.json").write_text(json.dumps(found))
  (folder / "1_Pooling").mkdir(exist_ok=True)
  (folder / "1_Pooling" / "config.json").write_text(json.dumps(pool))


MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
  "pool, scaled",
  [
    (MEAN, True),
    ({"pooling_mode": "mean"}, False),
    ({"pooling_mode_cls_token": True, "include_prompt": True}, False),
  ],
)
def test_sentences(recorded, tmp_path, pool, scaled):
  want = recorded("bert_encoder")[2]
  with np.load("tests/golden/bert_encoder.npz") as file:
    given = {
      k: jnp.asarray(file[f"input/{k}"]) for k in ("tokens", "mask", "types")
    }
  modules = ("Transformer", "Pooling", "Normalize")
  sentences(tmp_path, pool, modules if scaled else modules[:2])
  loaded = weights.load(tmp_path)
  got = jax.jit(loaded.model.apply)(loaded.variables, **given)
  x, mask = want["0"], np.asarray(given["mask"])[..., None]
  y = x[:, 0]
  if "pooling_mode_cls_token" not in pool or pool is MEAN:
    y = (x * mask).sum(1) / mask.sum(1)
  if scaled:
    y = y / np.linalg.norm(y, axis=-1, keepdims=True)
  np.testing.assert_allclose(got, y, atol=1e-5)
  # What is written says so too, in either format; the pooler comes along.
  for format in weights.FORMATS:
    path = weights.export(loaded, tmp_path / format, format=format)
    again = weights.load(path.parent)
    assert again.model == loaded.model
    np.testing.assert_array_equal(
      again.variables["params"]["pooler"]["dense"]["kernel"],
      loaded.variables["params"]["pooler"]["dense"]["kernel"],
    )


@pytest.mark.parametrize(
  "pool, modules, message",
  [
    ({"pooling_mode_max_tokens": True}, ("Pooling",), "max_tokens"),
    ({**MEAN, "pooling_mode_max_tokens": True}, ("Pooling",), "mean_tokens"),
    ({}, ("Pooling",), "pooling_mode = None"),
    ({**MEAN, "include_prompt": False}, ("Pooling",), "include_prompt"),
    (MEAN, ("Pooling", "Dense"), "models.Dense"),
  ],
)
def test_unknown_sentence_modules_are_named(
  recorded, tmp_path, pool, modules, message
):
  recorded("bert_encoder")
  sentences(tmp_path, pool, ("Transformer", *modules))
  with pytest.raises(errors.InputError, match=message):
    weights.load(tmp_path)


def test_missing_pool_is_named(recorded, tmp_path):
  recorded("bert_encoder")
  sentences(tmp_path, MEAN)
  (tmp_path / "1_Pooling" / "config.json").unlink()
  with pytest.raises(errors.InputError, match="1_Pooling"):
    weights.load(tmp_path)


def test_classes_are_of_a_text_or_of_each_token(recorded):
  def head(tensors):
    tensors["classifier.weight"] = tensors.pop("qa_outputs.weight")
    tensors["classifier.bias"] = tensors.pop("qa_outputs.bias")

  # Without a pooler there is nothing else to read.
  _, (_, out), want = recorded("bert_spans", tensors=head)
  for place, end in enumerate(("start", "end")):
    np.testing.assert_allclose(
      out["classes"][..., place], want[f"1/{end}"], atol=1e-4
    )

  def both(tensors):
    head(tensors)
    tensors["bert.pooler.dense.weight"] = np.eye(24, dtype=np.float32)
    tensors["bert.pooler.dense.bias"] = np.zeros(24, np.float32)

  for kind, axes in (("Token", 3), ("Sequence", 2)):

    def named(config, kind=kind):
      config["architectures"] = [f"BertFor{kind}Classification"]

    _, (_, out), _ = recorded("bert_spans", named, both)
    assert out["classes"].ndim == axes
  with pytest.raises(errors.InputError, match=r"architectures = .*each token"):
    recorded("bert_spans", lambda c: c.update(architectures=None), both)


def test_a_table_may_stand_as_its_copy_alone(recorded):
  def move(tensors):
    name = "roberta.embeddings.word_embeddings.weight"
    tensors["lm_head.decoder.weight"] = tensors.pop(name)
    tensors["lm_head.decoder.bias"] = tensors.pop("lm_head.bias")

  close(*recorded("roberta_masked_words", tensors=move)[1:])
