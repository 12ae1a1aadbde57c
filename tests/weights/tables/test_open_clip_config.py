import copy

import pytest

from mmjax import errors
from mmjax.weights.tables import open_clip_config

# open_clip's RN50.json and the config of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
RN50 = {
  "embed_dim": 1024,
  "vision_cfg": {
    "image_size": 224,
    "layers": [3, 4, 6, 3],
    "width": 64,
    "patch_size": None,
  },
  "text_cfg": {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
  },
}
H14 = {
  "model_cfg": {
    "embed_dim": 1024,
    "vision_cfg": {
      "image_size": 224,
      "layers": 32,
      "width": 1280,
      "head_width": 80,
      "patch_size": 14,
    },
    "text_cfg": {
      "context_length": 77,
      "vocab_size": 49408,
      "width": 1024,
      "heads": 16,
      "layers": 24,
    },
  },
  "preprocess_cfg": {"mean": [0.48, 0.46, 0.41]},
}


def changed(field, value, config=RN50):
  config = copy.deepcopy(config)
  *part, name = field.split(".")
  (config[part[0]] if part else config)[name] = value
  return config


def test_published_configs():
  said = open_clip_config.read(RN50)
  assert said.act == "gelu_exact"
  assert (said.head_width, said.text_heads) == (64, 8)
  assert said.pixels == (224, 224)
  assert said.image_tower == {"pool": "tok", "pre_norm": True}
  assert said.text_pool == {"causal": True, "pool": "eot"}
  assert said.image_epsilon == said.text_epsilon == 1e-5
  assert open_clip_config.read(H14).head_width == 80
  assert open_clip_config.read({"quick_gelu": True}) is None


@pytest.mark.parametrize(
  "field, value, attribute, want",
  [
    ("quick_gelu", True, "act", "quick_gelu"),
    ("text_cfg.act_kwargs", {"approximate": "tanh"}, "act", "gelu"),
    ("vision_cfg.image_size", [224, 320], "pixels", (224, 320)),
    (
      "vision_cfg.no_ln_pre",
      True,
      "image_tower",
      dict(pool="tok", pre_norm=False),
    ),
    (
      "vision_cfg.pool_type",
      "avg",
      "image_tower",
      dict(pool="gap", pre_norm=True, class_token=True, last_norm="tokens"),
    ),
    (
      "vision_cfg.ls_init_value",
      1e-5,
      "image_tower",
      dict(pool="tok", pre_norm=True, layer_scale=1e-5),
    ),
    ("vision_cfg.pos_embed_type", "sin_cos_2d", "head_width", 64),
    ("text_cfg.norm_kwargs", {"eps": 1e-6}, "text_epsilon", 1e-6),
    ("text_cfg.pool_type", "first", "text_pool", dict(causal=True, pool="cls")),
    (
      "text_cfg.no_causal_mask",
      True,
      "text_pool",
      dict(causal=False, pool="eot"),
    ),
    # Off is off, also for what newer versions may add.
    ("vision_cfg.attentional_pool", False, "head_width", 64),
    ("vision_cfg.some_new_field", None, "head_width", 64),
    ("vision_cfg.patch_dropout", 0.5, "head_width", 64),
  ],
)
def test_fields_are_followed(field, value, attribute, want):
  found = open_clip_config.read(changed(field, value))
  assert getattr(found, attribute) == want


def test_eos_pools_at_its_id():
  config = changed("text_cfg.pool_type", "eos")
  with pytest.raises(errors.InputError, match=r"text_cfg\.eos_id"):
    open_clip_config.read(config)
  config["text_cfg"]["eos_id"] = 7
  assert open_clip_config.read(config).text_pool["eot_id"] == 7


@pytest.mark.parametrize(
  "field, value",
  [
    ("multimodal_cfg", {"width": 512}),
    ("vision_cfg.attentional_pool", True),
    ("vision_cfg.pool_type", "none"),
    ("text_cfg.ls_init_value", 1e-5),
    ("vision_cfg.timm_model_name", "convnext_base"),
    ("vision_cfg.norm_kwargs", {"elementwise_affine": False}),
    ("text_cfg.hf_model_name", "roberta-base"),
    ("text_cfg.embed_cls", True),
    ("text_cfg.proj_bias", True),
    ("text_cfg.pool_type", "none"),
    ("text_cfg.act_kwargs", {"inplace": True}),
  ],
)
def test_what_is_not_known_is_refused_by_name(field, value):
  with pytest.raises(errors.InputError) as e:
    open_clip_config.read(changed(field, value))
  assert field in str(e.value) and repr(value) in str(e.value)


def test_two_activations_are_refused():
  config = changed("vision_cfg.layers", 12)
  config["text_cfg"]["act_kwargs"] = {"approximate": "tanh"}
  with pytest.raises(errors.InputError, match="two activations"):
    open_clip_config.read(config)


def test_agreement_is_asked_only_for_what_is_said():
  said = open_clip_config.read(RN50)
  open_clip_config.agree(said, "embed_dim", 1024)
  open_clip_config.agree(said, "vision_cfg.mlp_ratio", 3)
  open_clip_config.agree(None, "embed_dim", 3)
  with pytest.raises(errors.InputError, match="embed_dim = 1024: the tensors"):
    open_clip_config.agree(said, "embed_dim", 512)
