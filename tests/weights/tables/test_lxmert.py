import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmjax import errors, weights
from mmjax.build import build
from mmjax.weights import files, loading
from mmjax.weights.tables import lxmert


def close(out, want):
  for path, value in want.items():
    got = out[0] if path == "0" else out[1][path.split("/")[1]]
    scale = np.abs(value).max()
    np.testing.assert_allclose(got, value, atol=1e-4 * scale, err_msg=path)


def test_names_of_parallel_training_and_of_old_norms(recorded):
  def change(tensors):
    for name in list(tensors):
      new = name.replace("LayerNorm.weight", "LayerNorm.gamma")
      new = new.replace("LayerNorm.bias", "LayerNorm.beta")
      tensors[f"module.{new}"] = tensors.pop(name)
    for name in [n for n in tensors if "layer_norm" in n or "fc.2" in n]:
      new = name.replace(".weight", ".gamma").replace(".bias", ".beta")
      tensors[new] = tensors.pop(name)

  close(*recorded("lxmert_official", tensors=change)[1:])


def test_heads_are_there_where_their_tensors_are(recorded):
  def change(tensors):
    for name in [n for n in tensors if "attr" in n or "seq_rel" in n]:
      del tensors[name]

  _, out, want = recorded("lxmert_pretraining", tensors=change)
  assert "attributes" not in out[1] and "matched" not in out[1]
  gone = ("1/attributes", "1/matched")
  close(out, {k: v for k, v in want.items() if k not in gone})


@pytest.mark.parametrize(
  "field, value",
  [
    ("layer_norm_eps", 1e-5),
    ("hidden_act", "xielu"),
    ("position_embedding_type", "relative_key"),
  ],
)
def test_what_we_cannot_follow_is_named(recorded, field, value):
  with pytest.raises(errors.InputError, match=field):
    recorded("lxmert_pretraining", lambda config: config.update({field: value}))


def test_words_may_have_a_matrix_of_their_own(recorded):
  def config(found):
    found["tie_word_embeddings"] = False

  def tensors(found):
    bias = found["cls.predictions.bias"]
    bias[...] = 0
    found["cls.predictions.decoder.weight"] = -found[
      "lxmert.embeddings.word_embeddings.weight"
    ]

  _, out, _ = recorded("lxmert_pretraining", config, tensors)
  # Tied by the config, it is a copy.
  _, tied, _ = recorded("lxmert_pretraining", None, tensors)
  assert np.abs(tied[1]["logits"]).max() > 0.1
  np.testing.assert_allclose(out[1]["logits"], -tied[1]["logits"], atol=1e-6)


@pytest.mark.parametrize(
  "field, value, tensor",
  [
    ("num_qa_labels", 8, r"logit_fc\.3"),
    ("num_object_labels", 8, r"decoder_dict\.obj"),
    ("visual_feat_dim", 8, r"visn_fc\.visn_fc"),
    ("r_layers", 2, r"r_layers\.1"),
  ],
)
def test_sizes_of_other_weights_are_refused(recorded, field, value, tensor):
  with pytest.raises(errors.InputError, match=tensor):
    recorded("lxmert_pretraining", lambda config: config.update({field: value}))


@pytest.mark.slow  # the width of a head is 64 there
def test_the_authors_files_need_no_config(tmp_path):
  sizes = dict(
    model_type="lxmert",
    hidden_size=64,
    num_attention_heads=1,
    intermediate_size=8,
    vocab_size=11,
    max_position_embeddings=7,
    l_layers=2,
    r_layers=1,
    x_layers=3,
    visual_feat_dim=5,
    num_qa_labels=4,
  )
  marker = {
    "bert.embeddings.word_embeddings.weight": files.Tensor(
      (11, 64), np.dtype("float32"), lambda: np.zeros((11, 64), np.float32)
    ),
    "answer_head.logit_fc.0.weight": files.Tensor(
      (128, 64), np.dtype("float32"), lambda: np.zeros((128, 64), np.float32)
    ),
  }
  with_config = lxmert.build(files.Checkpoint(tmp_path, marker, sizes))
  model = build("models", **with_config.model)
  given = {k: jnp.zeros(*v) for k, v in with_config.inputs.items()}
  variables = jax.jit(model.init)(jax.random.key(0), **given)
  loaded = loading.Loaded(model, nn.unbox(variables), with_config)
  path = weights.export(loaded, tmp_path / "x")
  (tmp_path / "x" / "config.json").unlink()
  again = weights.load(path)
  assert again.model == model
  want = jax.jit(model.apply)(loaded.variables, **given)[0]
  got = jax.jit(model.apply)(again.variables, **given)[0]
  np.testing.assert_array_equal(got, want)
  # Its config is written from now on.
  path = weights.export(again, tmp_path / "y")
  assert (
    json.loads((tmp_path / "y" / "config.json").read_text())[
      "num_attention_heads"
    ]
    == 1
  )


def test_heads_of_an_odd_width_are_not_guessed(tmp_path):
  name = "bert.encoder.x_layers.0.visual_attention.att.query.weight"
  save_file(
    {name: np.zeros((24, 24), np.float32)}, tmp_path / "model.safetensors"
  )
  with pytest.raises(errors.InputError, match="width 24 without a config"):
    weights.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["l_layers", "r_layers", "x_layers"])
def test_a_stack_of_no_layers_has_no_leaves(declared, name):
  ours = {"l_layers": "text", "r_layers": "regions", "x_layers": "cross"}[name]
  sizes = dict(hidden_size=12, num_attention_heads=3, intermediate_size=8)
  _, all_ = declared(dict(model_type="lxmert", **sizes))
  _, leaves = declared(dict(model_type="lxmert", **sizes) | {name: 0})
  gone = all_.keys() - leaves.keys()
  assert gone and leaves.keys() < all_.keys()
  assert gone == {k for k in all_ if k.startswith(f"params/{ours}/blocks/")}
