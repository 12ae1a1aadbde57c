"""DeiT, DINOv2, ViT-MAE and AST of the hub; images of undeclared sizes.

Those are given to the reference with interpolate_pos_encoding=True, which
wants the declared image to be square; odd pixels fill no patch.
"""

import numpy as np
from make_golden import images, redraw, save_hub

SIZES = dict(
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=4,
)
SMALL = dict(SIZES, intermediate_size=20)


def make() -> None:
  """Records the cases."""
  _vit()
  _deit()
  _dinov2()
  _mae()
  _ast()
  _dual()


def drawn(model, seed):
  """Redraws a model; its positions are as large as its patches."""
  import torch

  model = redraw(model, seed)
  with torch.no_grad():
    for name, value in model.named_parameters():
      if "position_embed" in name or "pos_embed" in name:
        value *= 0.5 * value[0].numel() ** 0.5
  return model


def pixels(image):
  """Returns what PyTorch takes."""
  import torch

  return torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


def _vit() -> None:
  import torch
  from transformers import ViTConfig, ViTForImageClassification

  config = ViTConfig(
    **SMALL, image_size=24, patch_size=8, num_labels=3, qkv_bias=False
  )
  model = drawn(ViTForImageClassification(config), 3)
  image = images((2, 43, 18, 3))
  with torch.no_grad():
    x = pixels(image)
    found = model(x, interpolate_pos_encoding=True)
    tokens = model.vit(x, interpolate_pos_encoding=True).last_hidden_state
  save_hub(
    "vit_other_size",
    model,
    {"image": image},
    {"0": found.logits, "1/tokens": tokens},
  )


def _deit() -> None:
  import torch
  from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
  )

  config = DeiTConfig(**SMALL, image_size=(24, 16), patch_size=8, num_labels=5)
  model = drawn(DeiTForImageClassificationWithTeacher(config), 4)
  image = images((2, 24, 16, 3))
  with torch.no_grad():
    found = model(pixels(image))
    tokens = model.deit(pixels(image)).last_hidden_state
  save_hub(
    "deit_teacher",
    model,
    {"image": image},
    {
      "0": found.logits,
      "1/logits_cls": found.cls_logits,
      "1/logits_distilled": found.distillation_logits,
      "1/tokens": tokens,
    },
  )
  config = DeiTConfig(**SMALL, image_size=24, patch_size=8, num_labels=3)
  model = drawn(DeiTForImageClassification(config), 5)
  image = images((2, 16, 40, 3))
  with torch.no_grad():
    found = model(pixels(image), interpolate_pos_encoding=True)
  save_hub("deit_other_size", model, {"image": image}, {"0": found.logits})


def _dinov2() -> None:
  import torch
  from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
  )

  declared = dict(SIZES, mlp_ratio=2, image_size=28, patch_size=7)
  kinds = (
    (
      "dinov2_gated",
      Dinov2ForImageClassification,
      Dinov2Config(**declared, use_swiglu_ffn=True, num_labels=3),
      (37, 14),
    ),
    (
      "dinov2_encoder",
      Dinov2Model,
      Dinov2Config(**declared, hidden_act="gelu_new", qkv_bias=False),
      (28, 28),
    ),
    (
      "dinov2_registers",
      Dinov2WithRegistersForImageClassification,
      Dinov2WithRegistersConfig(
        **declared, num_register_tokens=3, num_labels=3
      ),
      (14, 42),
    ),
    (
      "dinov2_registers_encoder",
      Dinov2WithRegistersModel,
      Dinov2WithRegistersConfig(
        **declared, num_register_tokens=2, use_swiglu_ffn=True
      ),
      (42, 35),
    ),
  )
  for seed, (name, kind, config, size) in enumerate(kinds, 6):
    model = drawn(kind(config), seed)
    image = images((2, *size, 3), seed)
    with torch.no_grad():
      found = model(pixels(image))
      encoder = getattr(model, config.model_type, model)
      tokens = encoder(pixels(image)).last_hidden_state
    first = found.logits if "logits" in found else found.pooler_output
    save_hub(name, model, {"image": image}, {"0": first, "1/tokens": tokens})


def _mae() -> None:
  import torch
  from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

  config = ViTMAEConfig(
    **SMALL,
    image_size=24,
    patch_size=4,
    num_channels=1,
    decoder_hidden_size=12,
    decoder_num_hidden_layers=3,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=14,
    mask_ratio=0.7,
  )
  for name, size, normalised in (
    ("vit_mae", (24, 24), True),
    ("vit_mae_other_size", (16, 28), False),
  ):
    config.norm_pix_loss = normalised
    model = drawn(ViTMAEForPreTraining(config), 10)
    image = images((2, *size, 1))
    noise = _noise(2, size[0] * size[1] // 16)
    with torch.no_grad():
      given = dict(
        noise=torch.from_numpy(noise), interpolate_pos_encoding=not normalised
      )
      found = model(pixels(image), **given)
      inner = model.vit(pixels(image), **given)
    save_hub(
      name,
      model,
      {"image": image, "noise": noise},
      {
        "0": found.logits,
        "1/mask": found.mask,
        "1/loss": found.loss,
        "1/tokens": inner.last_hidden_state,
      },
    )
  model = drawn(ViTMAEModel(config), 11)
  image, noise = images((2, 24, 24, 1)), _noise(2, 36)
  with torch.no_grad():
    found = model(pixels(image), noise=torch.from_numpy(noise))
  save_hub(
    "vit_mae_encoder",
    model,
    {"image": image, "noise": noise},
    {
      "0": found.last_hidden_state[:, 0],
      "1/tokens": found.last_hidden_state,
      "1/mask": found.mask,
    },
  )


def _noise(rows, columns):
  rng = np.random.default_rng(0)
  return rng.random((rows, columns)).astype(np.float32)


def _ast() -> None:
  import torch
  from transformers import ASTConfig, ASTForAudioClassification, ASTModel

  config = ASTConfig(
    **SMALL,
    patch_size=6,
    frequency_stride=4,
    time_stride=5,
    max_length=33,
    num_mel_bins=19,
    num_labels=5,
  )
  audio = images((2, 33, 19))
  model = drawn(ASTForAudioClassification(config), 12)
  with torch.no_grad():
    found = model(torch.from_numpy(audio))
    inner = model.audio_spectrogram_transformer(torch.from_numpy(audio))
  save_hub(
    "ast",
    model,
    {"audio": audio},
    {
      "0": found.logits,
      "1/pre_logits": inner.pooler_output,
      "1/tokens": inner.last_hidden_state,
    },
  )
  model = drawn(ASTModel(config), 13)
  with torch.no_grad():
    found = model(torch.from_numpy(audio))
  save_hub(
    "ast_encoder",
    model,
    {"audio": audio},
    {"0": found.pooler_output, "1/tokens": found.last_hidden_state},
  )


def _dual() -> None:
  import torch
  from transformers import (
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
  )

  text = dict(SMALL, vocab_size=20, max_position_embeddings=7)
  declared = dict(SMALL, image_size=24, patch_size=8)
  ids = np.random.default_rng(2).integers(3, 18, (2, 7)).astype(np.int32)
  ids[0, 3], ids[1, 6] = 19, 19  # the end
  clip = CLIPConfig(
    text_config=dict(text, eos_token_id=19, bos_token_id=0, pad_token_id=1),
    vision_config=declared,
    projection_dim=10,
  )
  siglip = SiglipConfig(text_config=text, vision_config=declared)
  for name, kind, config, size in (
    ("clip_other_size", CLIPModel, clip, (34, 16)),
    ("siglip_other_size", SiglipModel, siglip, (16, 41)),
  ):
    model = drawn(kind(config), 14)
    image = images((2, *size, 3))
    with torch.no_grad():
      found = model(
        input_ids=torch.from_numpy(ids).long(),
        pixel_values=pixels(image),
        interpolate_pos_encoding=True,
      )
    save_hub(
      name,
      model,
      {"image": image, "text": ids},
      {"0": found.image_embeds, "1": found.text_embeds},
    )
