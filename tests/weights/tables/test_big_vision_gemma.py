import math
import pathlib

import jax
import numpy as np
import pytest

from mmjax import build, errors, weights
from mmjax.weights import files, loading
from mmjax.weights.tables import big_vision, big_vision_gemma

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


def gemma(width, depth, mlp, heads, kv_heads, head_dim, vocab):
  """Shapes of a Gemma, by the names of big_vision."""
  block = {
    "pre_attention_norm/scale": (width,),
    "pre_ffw_norm/scale": (width,),
    "attn/attn_vec_einsum/w": (heads, head_dim, width),
    "mlp/gating_einsum": (2, width, mlp),
    "mlp/linear": (mlp, width),
  }
  if heads == kv_heads:
    block["attn/qkv_einsum/w"] = (3, heads, width, head_dim)
  else:
    block["attn/q_einsum/w"] = (heads, width, head_dim)
    block["attn/kv_einsum/w"] = (2, kv_heads, width, head_dim)
  return {
    "embedder/input_embedding": (vocab, width),
    "final_norm/scale": (width,),
  } | {f"layers/{k}": (depth, *v) for k, v in block.items()}


def tower(width, depth, mlp, heads, patch, count, out):
  """Shapes of an image encoder with a head, by the names of big_vision."""
  attention, found = "MultiHeadDotProductAttention_0", {}
  for name in ("query", "key", "value"):
    found[f"{attention}/{name}/kernel"] = (width, heads, width // heads)
    found[f"{attention}/{name}/bias"] = (heads, width // heads)
  found |= {
    f"{attention}/out/kernel": (heads, width // heads, width),
    f"{attention}/out/bias": (width,),
    "MlpBlock_0/Dense_0/kernel": (width, mlp),
    "MlpBlock_0/Dense_0/bias": (mlp,),
    "MlpBlock_0/Dense_1/kernel": (mlp, width),
    "MlpBlock_0/Dense_1/bias": (width,),
  }
  found |= {f"LayerNorm_{i}/{x}": (width,) for i in "01" for x in NORM}
  found = {
    f"Transformer/encoderblock/{k}": (depth, *v) for k, v in found.items()
  }
  return found | {
    **{f"Transformer/encoder_norm/{x}": (width,) for x in NORM},
    "embedding/kernel": (patch, patch, 3, width),
    "embedding/bias": (width,),
    "pos_embedding": (1, count, width),
    "head/kernel": (width, out),
    "head/bias": (out,),
  }


NORM = ("scale", "bias")
GEMMA_2B = dict(
  width=2048, depth=18, mlp=16384, heads=8, kv_heads=1, head_dim=256
)
GEMMA_7B = dict(
  width=3072, depth=28, mlp=24576, heads=16, kv_heads=16, head_dim=256
)
SO14 = dict(width=1152, depth=27, mlp=4304, heads=16, patch=14, count=256)
TINY = dict(width=8, depth=2, mlp=12, heads=3, kv_heads=1, head_dim=4, vocab=9)


def paligemma():
  named = {
    "img": tower(**SO14, out=2048),
    "llm": gemma(**GEMMA_2B, vocab=257_152),
  }
  return {
    f"params/{part}/{k}": v for part, x in named.items() for k, v in x.items()
  }


def checkpoint(shapes):
  tensors = {
    k: files.Tensor(v, np.dtype("float32"), lambda: 1 / 0)
    for k, v in shapes.items()
  }
  return files.Checkpoint(pathlib.Path("x.npz"), tensors, {})


@pytest.mark.parametrize(
  "shapes, published",
  [
    # The hub's has 64 more rows, which are no tokens.
    (paligemma(), 2_923_466_480 - 64 * 2048),
    (gemma(**GEMMA_2B, vocab=256_000), 2_506_172_416),
    (gemma(**GEMMA_7B, vocab=256_000), 8_537_680_896),
  ],
  ids=["paligemma", "gemma-2b", "gemma-7b"],
)
def test_published_counts_and_every_tensor_has_its_place(shapes, published):
  found = checkpoint(shapes | {"opt/count": ()})
  recipe = loading.recognise(found)
  assert recipe.table == "big_vision_gemma"
  model = build.build("models", **recipe.model)
  declared = loading._declared(model, recipe)
  loading._check(recipe, found, loading.rules.unbox(declared))
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(declared)) == published


def recorded(name):
  with np.load(GOLDEN / f"{name}.npz") as case:
    return {
      k.removeprefix("tensor/"): case[k]
      for k in case.files
      if k.startswith("tensor/")
    }


def test_one_stack_or_tensors_each_under_any_root(tmp_path):
  # The recorded PaliGemma has a stack: cut into layers it is the same.
  tensors, cut = recorded("big_vision_paligemma"), {}
  prefix = "params/llm/layers/"
  for name, x in tensors.items():
    if name.startswith(prefix):
      for n, layer in enumerate(x):
        cut[f"llm/layers/{n}/{name.removeprefix(prefix)}"] = layer
    elif "llm/" in name:
      cut[name.removeprefix("params/")] = x
  np.savez(tmp_path / "whole.npz", **tensors)
  np.savez(tmp_path / "cut.npz", **cut)
  want = weights.load(tmp_path / "whole.npz").variables["params"]["language"]
  got = weights.load(tmp_path / "cut.npz").variables["params"]
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_turned_gate_is_turned_back_and_forth(tmp_path):
  tensors = recorded("big_vision_gemma")
  np.savez(tmp_path / "as_ours.npz", **tensors)
  want = weights.load(tmp_path / "as_ours.npz")
  for n in range(2):
    name = f"layers/{n}/mlp/gating_einsum"
    tensors[name] = tensors[name].swapaxes(1, 2)
  np.savez(tmp_path / "turned.npz", **tensors)
  got = weights.load(tmp_path / "turned.npz")
  jax.tree.map(np.testing.assert_array_equal, got.variables, want.variables)
  written = np.load(weights.export(got, tmp_path / "out", format="npz"))
  assert set(written.files) == set(tensors)
  for name, x in tensors.items():
    np.testing.assert_array_equal(written[name], x, name)


def test_rows_of_the_table_that_are_no_tokens_are_kept_but_never_chosen():
  recipe = big_vision_gemma.build(
    checkpoint(gemma(**TINY | {"vocab": 256_128}))
  )
  model = build.build("models", **recipe.model)
  assert model.vocab_size == 256_000
  declared = loading._declared(model, recipe)
  table = loading.rules.unbox(declared)["params"]["embedding"]["table"]
  assert table.shape == (256_128, 8)


@pytest.mark.parametrize(
  "heads, kv_heads, head_dim, width, scale",
  [(8, 4, 256, 2304, None), (32, 16, 128, 4608, 144**-0.5)],
)
def test_the_second_gemma_has_norms_after_and_caps(
  heads, kv_heads, head_dim, width, scale
):
  shapes = gemma(width, 2, 40, heads, kv_heads, head_dim, 50)
  norms = ("post_attention_norm", "post_ffw_norm")
  shapes |= {f"layers/{x}/scale": (2, width) for x in norms}
  found = checkpoint(shapes)
  recipe = big_vision_gemma.build(found)
  assert recipe.model["norm_after"] and recipe.model.get("scale") == scale
  assert (recipe.model["softcap"], recipe.model["logits_cap"]) == (50.0, 30.0)
  model = build.build("models", **recipe.model)
  declared = loading._declared(model, recipe)
  loading._check(recipe, found, loading.rules.unbox(declared))


@pytest.mark.parametrize(
  "change, message",
  [
    ({"params/img/MAPHead_0/probe": (1, 1, 1152)}, "a class token or a pool"),
    (
      {
        "params/img/embedding/kernel": (588, 1152),
        "params/img/pos_embedding": (16, 16, 1152),
      },
      "img/ is NaFlex",
    ),
    ({"params/img/cls": (1, 1, 1152)}, "a class token or a pool"),
    ({"params/img/pos_embedding": (1, 8, 1152)}, "8 positions.*no square"),
    ({"params/llm/mlp": None}, "no params/llm/layers/mlp/linear"),
  ],
)
def test_what_is_not_known_is_named(change, message):
  shapes = paligemma() | change
  if shapes.pop("params/llm/mlp", 0) is None:
    del shapes["params/llm/layers/mlp/linear"]
  with pytest.raises(errors.InputError, match=message):
    loading.recognise(checkpoint(shapes))


def test_a_missing_head_or_norm_is_named(tmp_path):
  tensors = recorded("big_vision_paligemma")
  del tensors["params/img/head/kernel"], tensors["params/llm/final_norm/scale"]
  np.savez(tmp_path / "x.npz", **tensors)
  with pytest.raises(
    errors.InputError, match=r"img/head/kernel.*final_norm/scale.*missing"
  ):
    weights.load(tmp_path / "x.npz")


def test_others_are_left_to_their_tables():
  assert (
    big_vision_gemma.build(checkpoint({"img/embedding/kernel": ()})) is None
  )
  assert big_vision.build(checkpoint(paligemma())) is None
