"""Every evaluator in evals/ keeps the contract of `typing.Evaluator`."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import build, errors
from mmjax.parallel import mesh, rules

NAMES = build.names("evals")


class Words:
  """A tokenizer: a number per letter."""

  pad_id, bos_id, eos_id, vocab_size = 0, None, 1, 128

  def encode(self, text):
    return [min(ord(c), 127) for c in text]


def embed(key, variables, batch):
  x = batch[key].reshape(batch[key].shape[0], -1).astype(jnp.float32)
  x = jnp.tanh(x / 64 @ variables["params"][key])
  return x / jnp.linalg.norm(x, axis=1, keepdims=True)


TASK = types.SimpleNamespace(
  predict={k: functools.partial(embed, k) for k in ("image", "text")}
)


def variables():
  rng = np.random.default_rng(0)
  params = {"image": rng.normal(size=(192, 8)), "text": rng.normal(size=(6, 8))}
  return {"params": jax.tree.map(lambda x: jnp.asarray(x, "float32"), params)}


def make(name, axes=None, **keywords):
  return build.build(
    "evals",
    name=name,
    task=TASK,
    tokenizers={"words": Words()},
    layout=rules.Layout(mesh.make_mesh(axes or {"data": 8})),
    **{**build.load("evals", name).TINY, **keywords},
  )


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_fractions_beside_their_chance(name):
  found = make(name).run(variables())
  assert found
  for key, value in found.items():
    assert type(value) is float and 0 <= value <= 1, key
  assert any(key.startswith("chance/") for key in found)


@pytest.mark.parametrize("name", NAMES)
def test_results_do_not_depend_on_mesh_or_batch(name):
  want = make(name).run(variables())
  assert make(name).run(variables()) == want
  other = {"data": 2, "fsdp": 2, "tensor": 2}
  sizes = build.load("evals", name).build.__kwdefaults__ or {}
  keywords = {"batch_size": 37} if "batch_size" in sizes else {}
  assert make(name, other, **keywords).run(variables()) == want


@pytest.mark.parametrize("name", NAMES)
def test_unknown_keyword(name):
  with pytest.raises(errors.InputError, match="no such name"):
    make(name, imagepp="decode")
