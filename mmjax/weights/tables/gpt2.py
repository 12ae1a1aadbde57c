"""GPT-2 in the model hub's layout (model_type "gpt2"), bare or with a head.

"Language models are unsupervised multitask learners", Radford et al. 2019. Its
Conv1D keeps kernels as ours, [in out]; query, key and value are one tensor.
"""

from typing import Any

from mmjax import errors
from mmjax.weights import recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import decoder_heads, hub

MODEL_TYPES = ("gpt2",)

# What files may leave out, and values that we cannot follow.
DEFAULTS = dict(
  vocab_size=50_257,
  n_positions=1024,
  n_embd=768,
  n_layer=12,
  n_head=12,
  n_inner=None,
  activation_function="gelu_new",
  layer_norm_epsilon=1e-5,
  resid_pdrop=0.1,
  embd_pdrop=0.1,
  attn_pdrop=0.1,
  scale_attn_weights=True,
  scale_attn_by_inverse_layer_idx=False,
  pad_token_id=None,
  tie_word_embeddings=True,
)


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a GPT-2, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  if checkpoint.config.get("model_type") not in MODEL_TYPES:
    return None
  config = recipe.Config({**DEFAULTS, **checkpoint.config}, checkpoint.path)
  if config.get("add_cross_attention"):
    raise errors.InputError(
      "config.json add_cross_attention = True: here there is no memory to "
      "attend to; only false can be loaded."
    )
  heads, width = config["n_head"], config["n_embd"]
  hub.check_heads(heads, width, ("n_head", "n_embd"))
  model: dict[str, Any] = dict(
    name="decoder_lm",
    vocab_size=config["vocab_size"],
    width=width,
    depth=config["n_layer"],
    heads=heads,
    mlp=config["n_inner"] or 4 * width,
    length=config["n_positions"],
    # False leaves the products as they are.
    scale=None if config["scale_attn_weights"] else 1.0,
    scale_falls=bool(config["scale_attn_by_inverse_layer_idx"]),
    act=hub.act(config, field="activation_function"),
    epsilon=config["layer_norm_epsilon"],
    dropout=config["resid_pdrop"],
    embed_dropout=config["embd_pdrop"],
    attention_dropout=config["attn_pdrop"],
  )
  prefix = hub.prefix(checkpoint, "transformer.")
  ours, block = "decoder/blocks/", f"{prefix}h.{{n}}."
  rules = [
    *decoder_heads.ends(checkpoint, prefix, config),
    *hub.norm(f"{ours}norm1", f"{block}ln_1"),
    *hub.norm(f"{ours}norm2", f"{block}ln_2"),
    *_attention(f"{ours}attention", f"{block}attn", heads, width),
  ]
  for mine, theirs in (("up", "c_fc"), ("down", "c_proj")):
    rules += [
      Rule(f"{ours}mlp/{mine}/kernel", f"{block}mlp.{theirs}.weight"),
      Rule(f"{ours}mlp/{mine}/bias", f"{block}mlp.{theirs}.bias"),
    ]
  model, rules = decoder_heads.headed(checkpoint, config, model, rules)
  return Recipe(
    table="gpt2",
    model=model,
    inputs={"tokens": ((1, 2), "int32")},
    rules=rules,
    config=checkpoint.config,
    # Masks in old files, and the copy of the tied head.
    ignore=(r"\.attn\.(masked_)?bias$", *decoder_heads.copies(config)),
    keep=(r"^multiple_choice_head\.",),
  )


def _attention(ours: str, theirs: str, heads: int, width: int) -> list[Rule]:
  size = width // heads
  kernel = rename.reshape((width, heads, size), (width, width))
  bias = rename.reshape((heads, size), (width,))
  rules = []
  for leaf, name, op, axis in (
    ("kernel", "weight", kernel, 1),
    ("bias", "bias", bias, 0),
  ):
    rules += rename.packed(
      [(f"{ours}/{x}/{leaf}", op) for x in ("query", "key", "value")],
      f"{theirs}.c_attn.{name}",
      (width, width, width),
      axis,
    )
  out = rename.reshape((heads, size, width), (width, width))
  return [
    *rules,
    Rule(f"{ours}/out/kernel", f"{theirs}.c_proj.weight", out),
    Rule(f"{ours}/out/bias", f"{theirs}.c_proj.bias"),
  ]
