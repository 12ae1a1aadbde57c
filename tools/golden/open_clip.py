"""open_clip's own models, with towers of timm and of the hub or all its own.

Needs clones, see `tools/reference_code.py`. The config.json of the hub's text
models, which open_clip fetches by name, are written out here.
"""

import sys

import numpy as np
import reference_code
from make_golden import images, redraw, save

ROBERTA = dict(
  vocab_size=50265,
  max_position_embeddings=514,
  type_vocab_size=1,
  layer_norm_eps=1e-5,
  pad_token_id=1,
)
SMALL = dict(
  vocab_size=50,
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=20,
  hidden_dropout_prob=0.0,
)
LENGTH = 9


def make() -> None:
  """Records the cases."""
  from transformers import AutoModel  # asks for torchvision, before stand-ins

  assert AutoModel
  vit = reference_code.module("timm.models.vision_transformer")
  sys.modules["timm"].create_model = lambda name, **keywords: getattr(
    vit, name
  )(**keywords)
  hub = reference_code.module("open_clip.hf_model")
  hub.AutoConfig.from_pretrained = _config

  trunk = dict(
    image_size=[48, 33],
    timm_model_pretrained=False,
    timm_pool="map",
    timm_proj="none",
    timm_model_kwargs=dict(
      embed_dim=16,
      depth=2,
      num_heads=4,
      mlp_ratio=1.25,
      patch_size=8,
      img_size=[48, 33],
    ),
  )
  own = dict(
    context_length=LENGTH,
    vocab_size=50,
    width=16,
    heads=4,
    layers=2,
    mlp_ratio=1.5,
    no_causal_mask=True,
    proj_bias=True,
    pool_type="last",
    norm_kwargs=dict(eps=1e-6),
    act_kwargs=dict(approximate="tanh"),
  )
  text = dict(hf_model_pretrained=False, context_length=LENGTH)
  _case(
    "open_clip_siglip",
    dict(
      embed_dim=16,
      custom_text=True,
      init_logit_bias=-10,
      vision_cfg=dict(trunk, timm_model_name="vit_base_patch16_siglip_224"),
      text_cfg=own,
    ),
    50,
  )
  _case(
    "open_clip_bert",
    dict(
      embed_dim=16,
      vision_cfg=dict(trunk, timm_model_name="vit_base_patch32_siglip_256"),
      text_cfg=dict(
        text,
        hf_model_name="bert-base-uncased",
        hf_model_config=dict(SMALL, max_position_embeddings=12),
        hf_pooler_type="cls_pooler",
        hf_proj_type="linear",
      ),
    ),
    51,
  )
  _case(
    "open_clip_roberta",
    dict(
      embed_dim=12,
      quick_gelu=True,
      vision_cfg=dict(
        image_size=24, layers=2, width=16, head_width=4, patch_size=8
      ),
      text_cfg=dict(
        text,
        hf_model_name="roberta-base",
        hf_model_config=dict(SMALL, max_position_embeddings=14),
        hf_pooler_type="mean_pooler",
      ),
    ),
    52,
  )
  _case(
    "open_clip_unprojected",
    dict(
      embed_dim=16,
      custom_text=True,
      init_logit_bias=-10,
      vision_cfg=dict(trunk, timm_model_name="vit_base_patch16_siglip_224"),
      text_cfg={k: v for k, v in own.items() if k != "proj_bias"}
      | dict(proj_type="none"),
    ),
    53,
  )
  # CLIPA reads the mean of patches ("An inverse scaling law for CLIP training",
  # Li et al. 2023); scales of layers are those of ViT-M-16-alt.
  _case(
    "open_clip_clipa",
    dict(
      embed_dim=12,
      vision_cfg=dict(
        image_size=[29, 16],
        layers=2,
        width=16,
        head_width=4,
        patch_size=7,
        no_ln_pre=True,
        pool_type="avg",
        final_ln_after_pool=True,
        ls_init_value=0.1,
      ),
      text_cfg=dict(
        context_length=LENGTH,
        vocab_size=50,
        width=20,
        heads=5,
        layers=2,
        pool_type="last",
        no_causal_mask=True,
      ),
    ),
    54,
  )


def _config(name):
  from transformers import BertConfig, RobertaConfig

  if name == "roberta-base":
    return RobertaConfig(**ROBERTA)
  assert name == "bert-base-uncased"
  return BertConfig()  # its defaults are that model's


def _case(name, config, seed) -> None:
  import torch

  model_of = reference_code.module("open_clip.model")
  apart = config.get("custom_text") or "hf_model_name" in config["text_cfg"]
  model = (model_of.CustomTextCLIP if apart else model_of.CLIP)(
    **{k: v for k, v in config.items() if k != "custom_text"}
  )
  model = redraw(model, seed)
  with torch.no_grad():
    # Positions are as large as patches and words.
    for key, value in model.named_parameters():
      if "pos_embed" in key:
        value *= 0.5 * value[0].numel() ** 0.5
  size = config["vision_cfg"]["image_size"]
  rows, columns = (size, size) if isinstance(size, int) else size
  image = images((3, rows, columns, 3), seed)
  ids = np.random.default_rng(seed).integers(2, 50, (3, LENGTH))
  pad = 1 if "roberta" in name else 0
  ids[0, 6:], ids[1, 4:] = pad, pad
  x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    outputs = {
      "0": model.encode_image(x, normalize=True),
      "1": model.encode_text(torch.from_numpy(ids), normalize=True),
      "2/0": model.logit_scale.exp(),
    }
    if model.logit_bias is not None:
      outputs["2/1"] = model.logit_bias
  save(
    name,
    dict(model_cfg=config),
    model.state_dict(),
    {"image": image, "text": ids.astype(np.int32)},
    outputs,
  )
