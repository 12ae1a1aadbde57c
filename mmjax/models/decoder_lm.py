"""Decoder language models: GPT-2, GPT-3, GPT-Neo, LaMDA, MT-NLG, Gemma 1, 2.

"Language models are unsupervised multitask learners", Radford et al. 2019;
"Language models are few-shot learners", Brown et al. 2020 (every second layer
sees a band only); "GPT-Neo", Black et al. 2021; "LaMDA", Thoppilan et al. 2022
(relative positions, gated GELU, no biases: as T5); "Using DeepSpeed and
Megatron to train Megatron-Turing NLG 530B", Smith et al. 2022; "Gemma" and
"Gemma 2: improving open language models at a practical size", 2024.

Called with (tokens [B T], mask [B T], positions [B T]), the last two optional,
it gives logits float32 [B T V]. `layers/generate.py` decodes with it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import norm as norms
from mmjax.layers.decoder import DecoderLM
from mmjax.layers.mlp import activation
from mmjax.layers.transformer import REMAT


def _sizes(width: int, depth: int, heads: int, **more: Any) -> dict[str, Any]:
  return dict(width=width, depth=depth, heads=heads, mlp=4 * width) | more


# The band of GPT-3 is not published; this is GPT-Neo's.
_GPT3 = dict(length=2048, pattern="gb", window=256)
_NEO = dict(length=2048, pattern="gb", window=256, scale=1.0, biases="o")
# T5 leaves scores unscaled and has H**-0.5 in its initial values; here it is
# in the scale.
_T5 = dict(
  vocab_size=32_000,
  length=8192,
  head_dim=128,
  posemb="relative",
  norm="rms",
  epsilon=1e-6,
  gated=True,
  biases="",
  mlp_bias=False,
)
_GEMMA = dict(
  vocab_size=256_000,
  length=8192,
  head_dim=256,
  posemb="rotary",
  norm="rms_plus_one",
  epsilon=1e-6,
  gated=True,
  biases="",
  mlp_bias=False,
  embed_scale=True,
)
# Every second layer sees a band, and branches end in a norm.
_GEMMA2 = _GEMMA | dict(
  pattern="bg", window=4096, softcap=50.0, logits_cap=30.0, norm_after=True
)

VARIANTS: dict[str, dict[str, Any]] = {
  "gpt2": _sizes(768, 12, 12),
  "gpt2-medium": _sizes(1024, 24, 16),
  "gpt2-large": _sizes(1280, 36, 20),
  "gpt2-xl": _sizes(1600, 48, 25),
  "gpt3-125m": _sizes(768, 12, 12, **_GPT3),
  "gpt3-350m": _sizes(1024, 24, 16, **_GPT3),
  "gpt3-760m": _sizes(1536, 24, 16, **_GPT3),
  # The table of the paper says 24 heads of 128, which is 1.5 times the width
  # and 1.52B parameters; 16 heads are what its 1.3B parameters have.
  "gpt3-1.3b": _sizes(2048, 24, 16, **_GPT3),
  "gpt3-2.7b": _sizes(2560, 32, 32, **_GPT3),
  "gpt3-6.7b": _sizes(4096, 32, 32, **_GPT3),
  # 40 heads of 128 are 5120, as in the paper.
  "gpt3-13b": _sizes(5140, 40, 40, head_dim=128, **_GPT3),
  "gpt3-175b": _sizes(12288, 96, 96, **_GPT3),
  "gpt-neo-125m": _sizes(768, 12, 12, **_NEO),
  "gpt-neo-1.3b": _sizes(2048, 24, 16, **_NEO),
  "gpt-neo-2.7b": _sizes(2560, 32, 20, **_NEO),
  "lamda-2b": _sizes(2560, 10, 40, **_T5) | dict(mlp=8 * 2560),
  "lamda-8b": _sizes(4096, 16, 64, **_T5) | dict(mlp=8 * 4096),
  "lamda-137b": _sizes(8192, 64, 128, **_T5) | dict(mlp=8 * 8192),
  "mtnlg-530b": _sizes(20480, 105, 128, length=2048, std=4e-3),
  "gemma-2b": _sizes(2048, 18, 8, kv_heads=1, **_GEMMA) | dict(mlp=16384),
  "gemma-7b": _sizes(3072, 28, 16, **_GEMMA) | dict(mlp=24576),
  "gemma2-2b": _sizes(2304, 26, 8, kv_heads=4, **_GEMMA2),
  "gemma2-9b": _sizes(3584, 42, 16, kv_heads=8, **_GEMMA2),
  # Its scores are scaled by the width of a head that all widths would share.
  "gemma2-27b": _sizes(4608, 46, 32, kv_heads=16, **_GEMMA2)
  | dict(mlp=36864, head_dim=128, scale=144**-0.5),
}
POSEMBS = ("learn", "rotary", "relative")

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  vocab_size=64,
  width=32,
  depth=2,
  heads=4,
  mlp=64,
  length=8,
  pattern="gb",
  window=3,
)
TINY_INPUTS = dict(tokens=((8,), "int32"), mask=((8,), "int32"))


def log_likelihood(
  model: DecoderLM,
  variables: Any,
  prompt: jax.Array,
  continuation: jax.Array,
  *,
  prompt_mask: jax.Array | None = None,
  continuation_mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Scores continuations of prompts.

  Args:
    model, variables: as loaded.
    prompt: int32 [B P], P at least 1, padded on the left.
    continuation: int32 [B C], padded on the right.
    prompt_mask: [B P]. continuation_mask: [B C]. None is all.

  Returns:
    log p(continuation | prompt), float32 [B], a sum over its tokens; and
    whether greedy decoding would give it, bool [B].

  Raises:
    InputError: a prompt without a token.
  """
  P = prompt.shape[1]
  if not P:
    raise errors.InputError(
      "log_likelihood prompt: it has no token; begin with one, such as the end "
      "of a text."
    )
  if prompt_mask is None:
    prompt_mask = jnp.ones(prompt.shape, bool)
  if continuation_mask is None:
    continuation_mask = jnp.ones(continuation.shape, bool)
  wanted = continuation_mask != 0
  tokens = jnp.concatenate([prompt, continuation], 1)
  mask = jnp.concatenate([prompt_mask != 0, wanted], 1)
  x: Any = model.apply(variables, tokens, mask, method="hidden")
  # Only where a token of the continuation is next.
  logits: Any = model.apply(variables, x[:, P - 1 : -1], method="logits")
  found = jnp.take_along_axis(logits, continuation[..., None], 2)[..., 0]
  found = found - jax.nn.logsumexp(logits, -1)
  greedy = (logits.argmax(-1) == continuation) | ~wanted
  return jnp.where(wanted, found, 0.0).sum(-1), greedy.all(-1)


def build(variant: str | None = None, **keywords: Any) -> DecoderLM:
  """Builds a decoder language model.

  Args:
    variant: a name of `VARIANTS`, or None. What is given beside it goes
      before it; their vocabulary is GPT-2's where they do not say.
    **keywords: attributes of `DecoderLM`; dtype by its name.

  Raises:
    InputError: an unknown name, a size that is not given, a pattern without
      its window.
  """
  fields = [f.name for f in dataclasses.fields(DecoderLM)]
  fields = [f for f in fields if f not in ("parent", "name")]
  for key in keywords:
    if key not in fields:
      raise errors.unknown("models.decoder_lm keyword", key, fields)
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.decoder_lm variant", variant, VARIANTS)
    keywords = {"vocab_size": 50_257} | VARIANTS[variant] | keywords
  sizes = ("vocab_size", "width", "depth", "heads", "mlp")
  missing = [name for name in sizes if keywords.get(name) is None]
  if missing:
    raise errors.InputError(
      f"models.decoder_lm: {', '.join(missing)} not given; give them, or a "
      "variant such as 'gpt2'."
    )
  keywords["dtype"] = jnp.dtype(keywords.get("dtype", "float32"))
  model = DecoderLM(**keywords)
  for field, value, known in (
    ("posemb", model.posemb, POSEMBS),
    ("norm", model.norm, norms.KINDS),
    ("remat", model.remat, REMAT),
  ):
    if value not in known:
      raise errors.unknown(f"models.decoder_lm {field}", value, known)
  activation(model.act)
  if not model.pattern or set(model.pattern) - set("gb"):
    raise errors.InputError(
      f"models.decoder_lm pattern = {model.pattern!r}: letters 'g' and 'b', "
      "what the blocks see in turn; 'gb' is GPT-3's."
    )
  if "b" in model.pattern and (model.window is None or model.window < 1):
    raise errors.InputError(
      f"models.decoder_lm window = {model.window}: a band of pattern = "
      f"{model.pattern!r} needs 1 or more; give it, or pattern='g'."
    )
  return model
