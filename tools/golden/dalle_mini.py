"""dalle-mini, computed by its own code (PyPI dalle-mini 0.1.5).

It asks for releases of transformers that have Flax, which no longer install.
Unpack its wheel, name the folder in DALLE_MINI, and run this where JAX, Flax
and einops are:

  pip download --no-deps dalle-mini==0.1.5 && unzip -d dm dalle_mini-*.whl
  DALLE_MINI=dm python tools/make_golden.py dalle_mini

What it takes from transformers stands below, as empty as it may be: bases
whose parts it defines anew, and how heads are split and merged. Its modules
are called one by one, as BART's `__call__` does.
"""

import importlib
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from golden.big_vision import drawn, nested
from make_golden import save

LENGTH, VOCAB = 9, 24
# All that differs from what is published, in one model.
OTHERWISE = dict(
  ln_positions="cogview",
  ln_type="rmsnorm",
  use_bias=True,
  use_glu=False,
  use_scan=False,
  use_final_ln_encoder=False,
  decoder_start_token_id=5,
)


class Anything(types.ModuleType):
  """A module with every name."""

  def __getattr__(self, name: str) -> Any:
    if name.startswith("__"):
      raise AttributeError(name)
    return type(name, (dict,), {})


def source() -> Any:
  """Returns dalle-mini's module of models, without transformers."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp

  class FlaxBartAttention(nn.Module):
    config: Any
    embed_dim: int
    num_heads: int
    dropout: float = 0.0
    causal: bool = False
    bias: bool = True
    dtype: Any = jnp.float32

    def _split_heads(self, x: Any) -> Any:
      return x.reshape(*x.shape[:2], self.num_heads, self.head_dim)

    def _merge_heads(self, x: Any) -> Any:
      return x.reshape(*x.shape[:2], self.embed_dim)

  class Module(nn.Module):
    config: Any
    dtype: Any = jnp.float32

  class Config:
    def __init__(self, **kw: Any):
      self.forced_bos_token_id = None
      self.__dict__.update(kw)

  given: dict[str, Callable[..., Any] | Any] = dict(
    FlaxBartAttention=FlaxBartAttention,
    FlaxBartForConditionalGenerationModule=Module,
    FlaxBartModule=Module,
    PretrainedConfig=Config,
    ACT2FN={"gelu": lambda x: jax.nn.gelu(x, approximate=False)},
  )
  for name in (
    "transformers",
    "transformers.configuration_utils",
    "transformers.modeling_flax_outputs",
    "transformers.modeling_flax_utils",
    "transformers.models",
    "transformers.models.bart",
    "transformers.models.bart.modeling_flax_bart",
    "transformers.utils",
    "wandb",
  ):
    module = Anything(name)
    module.__dict__.update(given, logging=types.SimpleNamespace())
    module.logging.get_logger = lambda name: None
    sys.modules[name] = module
  vars(jnp)["DeviceArray"] = jax.Array  # its old name, in annotations
  # The package's own __init__ imports processors that are not needed.
  for name in ("dalle_mini", "dalle_mini.model"):
    package = types.ModuleType(name)
    folder = os.path.join(os.environ["DALLE_MINI"], *name.split("."))
    package.__path__ = [folder]
    sys.modules[name] = package
  return importlib.import_module("dalle_mini.model.modeling")


def make() -> None:
  """Records the cases; ids only of what is published."""
  modeling = source()
  _record(modeling, "dalle_mini", {}, decodes=True)
  _record(modeling, "dalle_mini_cogview", OTHERWISE, decodes=False)


def _record(
  modeling: Any, case: str, changes: dict[str, Any], decodes: bool
) -> None:
  import flax.linen as nn
  import jax
  import jax.numpy as jnp

  config: dict[str, Any] = dict(
    encoder_vocab_size=31,
    image_vocab_size=VOCAB,
    image_length=LENGTH,
    max_text_length=7,
    encoder_layers=3,
    encoder_ffn_dim=22,
    encoder_attention_heads=5,
    decoder_layers=2,
    decoder_ffn_dim=26,
    decoder_attention_heads=2,
    d_model=20,
    gradient_checkpointing=False,
    **changes,
  )
  start = config.get("decoder_start_token_id", VOCAB)

  class Model(nn.Module):
    """Both halves and the head, named as in the published files."""

    def setup(self):
      args = modeling.DalleBartConfig(**config)
      self.bart = modeling.FlaxBartModule(args, name="model")
      self.lm_head = nn.Dense(VOCAB + 1, use_bias=False)

    def __call__(self, tokens: Any, target: Any, mask: Any) -> Any:
      encoder, decoder = self.bart.encoder, self.bart.decoder
      places = jnp.arange(tokens.shape[1])[None]
      memory = encoder(tokens, mask, places, return_dict=False)[0]
      places, there = jnp.arange(target.shape[1])[None], jnp.ones(target.shape)
      args = (target, there, places, memory, mask)
      return self.lm_head(decoder(*args, return_dict=False)[0])

  rng = np.random.default_rng(4)
  mask = (np.arange(7)[None] < np.array([7, 5, 3])[:, None]).astype(np.int32)
  tokens = np.where(mask, rng.integers(3, 31, (3, 7)), 1).astype(np.int32)
  free = np.tile(np.array([[0, 2, 1]], np.int32), (3, 1))
  free_mask = (free != 1).astype(np.int32)
  target = rng.integers(0, VOCAB, (3, LENGTH)).astype(np.int32)
  target[:, 0] = start
  model = Model()
  tensors = drawn(model, tokens, target, mask, prefix="")
  apply = jax.jit(lambda *args: model.apply(nested(tensors, ""), *args))
  logits = apply(tokens, target, mask)

  def greedy(guidance: float) -> np.ndarray:
    ids = np.full((3, LENGTH + 1), start, np.int32)
    for i in range(LENGTH):
      given = apply(tokens, ids[:, :-1], mask)[:, i]
      without = apply(free, ids[:, :-1], free_mask)[:, i]
      ids[:, i + 1] = (without + guidance * (given - without)).argmax(-1)
    return ids

  prompt = np.full((3, 1), start, np.int32)
  settings = dict(length=LENGTH + 1, eos_ids=[])
  inputs = dict(tokens=tokens, mask=mask)
  text_free = dict(
    free_tokens=free,
    free_mask=free_mask,
    guidance=np.full((3,), 10, np.float32),
  )
  save(
    case,
    {"model_type": "dallebart"} | config,
    tensors,
    inputs | {"decoder_tokens": target},
    {".": logits},
    {
      name: dict(settings=settings, prompt=prompt, ids=greedy(guidance))
      | inputs
      | more
      for name, guidance, more in (
        ("greedy", 1.0, {}),
        ("guided", 10.0, text_free),
      )
      if decodes
    },
  )
