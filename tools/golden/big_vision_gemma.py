"""Gemma and PaliGemma of big_vision, computed by its own code.

What it takes to run this is said in `big_vision.py`; also einops and
ml_collections. The sizes of Gemma are big_vision's own, so tiny ones are put in
their place. What the reference says at padding is not recorded (NaN).
"""

import zlib
from typing import Any

import numpy as np
from golden import big_vision
from golden.paligemma import EOS, PAD, PROMPT, SUFFIX, TOKENS, VOCAB
from make_golden import images, save

LENGTH = 14
SIZES = dict(
  variant="tiny",
  width=20,
  depth=2,
  mlp_dim=36,
  num_heads=5,
  head_dim=6,
  norm_eps=1e-6,
  vocab_size=VOCAB,
)


# The caps are those of the released sizes, which no tensor says.
SECOND = dict(
  num_heads=4,
  num_kv_heads=2,
  final_logits_softcap=30.0,
  attn_logits_softcap=50.0,
  post_norms=True,
)


def make() -> None:
  """Records the cases."""
  _paligemma("big_vision_paligemma", dict(num_kv_heads=1))
  _paligemma("big_vision_paligemma2", SECOND)
  _gemma("big_vision_gemma", dict(num_kv_heads=5))
  _gemma("big_vision_gemma2", SECOND)


def _paligemma(name: str, sizes: dict[str, Any]) -> None:
  import ml_collections

  gemma = big_vision.models("ppp.gemma")
  gemma.get_config = lambda _: ml_collections.ConfigDict({**SIZES, **sizes})
  model = big_vision.models("proj.paligemma.paligemma").Model(
    img=dict(
      width=24,
      depth=2,
      mlp_dim=36,
      num_heads=3,
      patch_size=(8, 8),
      pool_type="none",
      scan=True,
    ),
    llm=dict(cache_dtype="float32"),
  )
  image = images((3, 24, 24, 3), seed=43)
  mask = (TOKENS != PAD).astype(np.int32)
  # Nothing sees padding at the end, if that is a suffix.
  causal = np.where(mask == 1, SUFFIX, 1)
  tensors = big_vision.drawn(model, image, TOKENS, causal)
  tensors = _sharp(tensors, "params/llm/")
  params = big_vision.nested(tensors)
  logits, out = model.apply(params, image, TOKENS, causal)
  logits = np.array(logits)
  logits[mask == 0] = np.nan
  save(
    name,
    {},
    tensors,
    {"image": image, "tokens": TOKENS, "mask": mask, "suffix": SUFFIX},
    {"0": logits, "1/image": out["img/zimg"]},
    {
      "greedy": {
        "settings": dict(length=LENGTH, eos_ids=[EOS], pad_id=PAD),
        "prompt": PROMPT,
        "ids": _greedy(model, params, image),
        "image": image,
        "mask": (PROMPT != PAD).astype(np.int32),
      }
    },
  )


def _greedy(model: Any, params: Any, image: np.ndarray) -> np.ndarray:
  """Decodes by the reference's cache; its prompts begin at the left."""
  there = PROMPT != PAD
  order = np.argsort(~there, axis=1, kind="stable")
  text = np.take_along_axis(PROMPT, order, 1)
  valid = np.take_along_axis(there, order, 1)
  (x, valid, causal), _ = model.apply(
    params,
    image,
    text,
    input_mask=valid,
    mask_ar=np.zeros_like(text),
    method="embed_image_and_text",
  )
  new = LENGTH - PROMPT.shape[1]
  logits, cache = model.apply(
    params,
    x,
    valid,
    causal,
    cache_size=x.shape[1] + new,
    method="prefill_cache",
    mutable=["cache"],
  )
  ids = [PROMPT]
  for _ in range(new):
    ids.append(np.asarray(logits).argmax(-1).astype(np.int32))
    x, _ = model.apply(params, ids[-1], method="embed_text")
    logits, cache = model.apply(
      {**params, **cache}, x, method="extend_cache", mutable=["cache"]
    )
  return np.concatenate(ids, 1)


def _gemma(name: str, sizes: dict[str, Any]) -> None:
  gemma = big_vision.models("ppp.gemma")
  model = gemma.Model(**{**SIZES, **sizes}, scan=False)
  tensors = _sharp(big_vision.drawn(model, TOKENS, prefix=""), "")
  logits, _ = model.apply(big_vision.nested(tensors, ""), TOKENS)
  save(name, {}, tensors, {"tokens": TOKENS}, {".": logits})


def _sharp(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
  """Draws a Gemma anew, whose logits differ from token to token.

  Its scales are what is added to 1.
  """
  out = dict(tensors)
  for name, old in tensors.items():
    if not name.startswith(prefix):
      continue
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.normal(size=old.shape)
    if name.endswith("scale"):
      noise = 0.3 * noise
    elif name.endswith("attn_vec_einsum/w"):
      noise = 2 * noise / np.prod(old.shape[-3:-1]) ** 0.5
    elif name.endswith("input_embedding"):
      noise = noise / old.shape[-1] ** 0.5
    else:
      noise = 2 * noise / old.shape[-2] ** 0.5
    out[name] = noise.astype(np.float32)
  return out
