"""What open_clip's config says that its tensors do not: checked, by name.

No table itself. Fields: github mlfoundations/open_clip, src/open_clip/model.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax import errors

# Fields that we follow, or that change nothing where weights are used. Any
# other one must be off: false, 0 or null.
MODEL = {
  "embed_dim",
  "vision_cfg",
  "text_cfg",
  "quick_gelu",
  "custom_text",
  "init_logit_scale",
  "init_logit_bias",
  "nonscalar_logit_scale",
  "cast_dtype",
  "output_dict",
}
VISION = {
  "image_size",
  "layers",
  "width",
  "head_width",
  "mlp_ratio",
  "patch_size",
  "patch_dropout",
  "no_ln_pre",
  "final_ln_after_pool",
  "output_tokens",
  "norm_kwargs",
  "act_kwargs",
  "attn_pooler_queries",
  "attn_pooler_heads",
  "n_queries",
  "ls_init_value",
  "timm_pool",
  "timm_proj",
}
TEXT = {
  "context_length",
  "vocab_size",
  "hf_tokenizer_name",
  "tokenizer_kwargs",
  "tokenizer_mode",
  "width",
  "heads",
  "layers",
  "mlp_ratio",
  "pad_id",
  "bos_id",
  "eos_id",
  "no_causal_mask",
  "final_ln_after_pool",  # no difference to one token
  "output_tokens",
  "norm_kwargs",
  "act_kwargs",
  "hf_model_pretrained",
  "hf_proj_type",
  "hf_pooler_type",
}
# More of them, of towers that are timm's or the hub's.
TOWERS = {
  "vision_cfg": {
    "timm_model_name",
    "timm_model_pretrained",
    "timm_model_kwargs",
  },
  "text_cfg": {"hf_model_name", "hf_model_config", "proj_bias"},
}
# Fields that must have one of these values.
FIXED = {
  "vision_cfg.pool_type": ("tok", "avg"),
  # Either stands among the tensors.
  "vision_cfg.pos_embed_type": ("learnable", "sin_cos_2d"),
  "text_cfg.pool_type": ("argmax", "eos", "last", "first"),
  "text_cfg.proj_type": ("linear", "none"),
}
DEFAULTS = {
  "vision_cfg": dict(image_size=224, head_width=64),
  "text_cfg": dict(heads=8, pool_type="argmax"),
}


@dataclasses.dataclass(frozen=True)
class Said:
  """A checked config.

  Attributes:
    fields: by name, dotted: "vision_cfg.width".
    act: our name of the activation.
    pixels: rows and columns of the image.
    head_width: channels of a head of the image tower.
    image_tower: keywords of the ViT: what it pools, where its norms are.
    text_heads: of the text tower.
    text_pool: keywords of the text encoder.
    image_epsilon, text_epsilon: of the norms.
  """

  fields: Mapping[str, Any]
  act: str
  pixels: tuple[int, int]
  head_width: int
  image_tower: dict[str, Any]
  text_heads: int
  text_pool: dict[str, Any]
  image_epsilon: float
  text_epsilon: float


def read(config: Mapping[str, Any], *, towers: bool = False) -> Said | None:
  """Reads a config, None if it is not open_clip's.

  Args:
    config: an open_clip_config.json, or what stands there as "model_cfg".
    towers: fields of timm's and the hub's towers are let in.

  Raises:
    InputError: a field that changes the model in a way that we do not know.
  """
  model = config.get("model_cfg", config)
  if "vision_cfg" not in model or "text_cfg" not in model:
    return None
  _known("", model, MODEL)
  fields = {k: v for k, v in model.items() if not isinstance(v, Mapping)}
  for part, known in (("vision_cfg", VISION), ("text_cfg", TEXT)):
    more = TOWERS[part] if towers else set()
    _known(f"{part}.", model[part], known | more)
    values = {**DEFAULTS[part], **model[part]}
    fields |= {f"{part}.{k}": v for k, v in values.items()}
  size = fields["vision_cfg.image_size"]
  return Said(
    fields=fields,
    act=_act(fields),
    pixels=(size, size) if isinstance(size, int) else tuple(size),
    head_width=fields["vision_cfg.head_width"],
    image_tower=_image_tower(fields),
    text_heads=fields["text_cfg.heads"],
    text_pool=_text_pool(fields),
    image_epsilon=_epsilon(fields, "vision_cfg.norm_kwargs"),
    text_epsilon=_epsilon(fields, "text_cfg.norm_kwargs"),
  )


def agree(said: Said | None, field: str, found: Any) -> None:
  """Raises InputError if a config says another value than the tensors have."""
  if said is None or field not in said.fields:
    return
  if said.fields[field] != found:
    raise errors.InputError(
      f"open_clip config {field} = {said.fields[field]!r}: the tensors have "
      f"{found!r}; check that config and weights are of one model."
    )


def _known(where: str, part: Mapping[str, Any], known: set[str]) -> None:
  for name, value in part.items():
    field = f"{where}{name}"
    if field in FIXED:
      if value not in FIXED[field]:
        raise errors.unknown(f"open_clip config {field}", value, FIXED[field])
    elif name not in known and value:
      raise errors.InputError(
        f"open_clip config {field} = {value!r}: models with it are not known; "
        "of open_clip's, its own ViT and ResNet with its own text tower are."
      )


def _act(fields: Mapping[str, Any]) -> str:
  exact = "quick_gelu" if fields.get("quick_gelu") else "gelu_exact"
  found = set()
  for part in ("vision_cfg", "text_cfg"):
    if isinstance(fields.get("vision_cfg.layers"), list) and part[0] == "v":
      continue  # a ResNet, which has ReLU
    if any(fields.get(f"{part}.{x}_model_name") for x in ("timm", "hf")):
      continue  # a tower with its own
    given = fields.get(f"{part}.act_kwargs") or {}
    if given and given != {"approximate": "tanh"}:
      raise errors.InputError(
        f"open_clip config {part}.act_kwargs = {given!r}: only "
        '{"approximate": "tanh"} is known.'
      )
    found.add("gelu" if given else exact)
  if len(found) > 1:
    raise errors.InputError(
      "open_clip config act_kwargs: the towers have two activations "
      f"({', '.join(sorted(found))}), which is not known."
    )
  return found.pop() if found else exact


def _epsilon(fields: Mapping[str, Any], name: str) -> float:
  given = fields.get(name) or {}
  if set(given) - {"eps"}:
    raise errors.InputError(
      f"open_clip config {name} = {given!r}: only eps is known there."
    )
  return given.get("eps", 1e-5)


def _image_tower(fields: Mapping[str, Any]) -> dict[str, Any]:
  tower: dict[str, Any] = dict(
    pool="tok", pre_norm=not fields.get("vision_cfg.no_ln_pre", False)
  )
  if fields.get("vision_cfg.pool_type", "tok") == "avg":
    after = fields.get("vision_cfg.final_ln_after_pool", False)
    tower |= dict(
      pool="gap", class_token=True, last_norm="pooled" if after else "tokens"
    )
  scale = fields.get("vision_cfg.ls_init_value")
  return tower if scale is None else tower | dict(layer_scale=scale)


def _text_pool(fields: Mapping[str, Any]) -> dict[str, Any]:
  kind = fields["text_cfg.pool_type"]
  pool: dict[str, Any] = dict(
    causal=not fields.get("text_cfg.no_causal_mask", False),
    pool={"last": "last", "first": "cls"}.get(kind, "eot"),
  )
  if kind == "eos":
    if not isinstance(fields.get("text_cfg.eos_id"), int):
      raise errors.InputError(
        "open_clip config text_cfg.eos_id is not given: text_cfg.pool_type = "
        "'eos' reads the text there; add it."
      )
    pool["eot_id"] = fields["text_cfg.eos_id"]
  return pool
