"""MAE, AST and DINOv2 by their authors' own code and names.

Needs clones, see `tools/reference_code.py`. The code of MAE and AST is of
timm 0.3 and 0.4; what it takes of timm is today's, with the arguments that are
gone left out.
"""

import functools
import sys

import numpy as np
import reference_code
from golden.vit_family import drawn, pixels
from make_golden import images, save

HEADS = 4


def make() -> None:
  """Records the cases."""
  _mae()
  _ast()
  _dinov2()


def _mae() -> None:
  import torch

  vit = reference_code.module("timm.models.vision_transformer")
  np.float = float  # numpy's before 1.24
  block = vit.Block

  class Block(block):
    """Takes qk_scale, which is None."""

    def __init__(self, *args, qk_scale, **keywords):
      assert qk_scale is None
      super().__init__(*args, **keywords)

  vit.Block = Block
  try:
    models_mae = reference_code.script("models_mae", "mae")
  finally:
    vit.Block = block
  model = models_mae.MaskedAutoencoderViT(
    img_size=20,
    patch_size=4,
    embed_dim=16,
    depth=2,
    num_heads=HEADS,
    decoder_embed_dim=12,
    decoder_depth=3,
    decoder_num_heads=2,
    mlp_ratio=1.75,
    norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    norm_pix_loss=True,
  )
  model = drawn(model, 40)
  image = images((2, 20, 20, 3), 40)
  noise = np.random.default_rng(40).random((2, 25)).astype(np.float32)
  real = torch.rand
  torch.rand = lambda *shape, device=None: torch.from_numpy(noise)
  try:
    with torch.no_grad():
      loss, painted, mask = model(pixels(image), mask_ratio=0.6)
      tokens, _, _ = model.forward_encoder(pixels(image), 0.6)
  finally:
    torch.rand = real
  arguments = dict(
    num_heads=HEADS, decoder_num_heads=2, norm_pix_loss=True, mask_ratio=0.6
  )
  save(
    "mae_official",
    dict(model_args=arguments),
    model.state_dict(),
    {"image": image, "noise": noise},
    {"0": painted, "1/tokens": tokens, "1/mask": mask, "1/loss": loss},
  )


def _ast() -> None:
  import torch

  deit = reference_code.module("timm.models.deit")
  timm = sys.modules["timm"]
  timm.__version__ = "0.4.5"  # it refuses all others
  layers = reference_code.stand_in("timm.models.layers")
  found = reference_code.module("timm.layers")
  layers.to_2tuple, layers.trunc_normal_ = found.to_2tuple, found.trunc_normal_
  reference_code.stand_in("wget")
  width = 16

  def create_model(name, pretrained):
    assert "distilled" in name and not pretrained
    model = deit.VisionTransformerDistilled(
      img_size=32,
      patch_size=16,
      embed_dim=width,
      depth=2,
      num_heads=HEADS,
      mlp_ratio=1.25,
      num_classes=3,
    )
    # Its own, which takes spectrograms of any size.
    model.patch_embed = timm.models.vision_transformer.PatchEmbed(
      32, 16, 3, width
    )
    return model

  timm.create_model = create_model
  models = reference_code.script("models.ast_models", "ast/src")
  arguments = dict(fstride=12, tstride=9, input_fdim=45, input_tdim=53)
  model = models.ASTModel(
    label_dim=5, imagenet_pretrain=False, verbose=False, **arguments
  )
  model = torch.nn.DataParallel(drawn(model, 41))
  audio = images((2, 53, 45), 41)
  kept = {}
  inner = model.module
  inner.v.norm.register_forward_hook(lambda _m, _i, y: kept.update(tokens=y))
  with torch.no_grad():
    logits = inner(torch.from_numpy(audio))
  save(
    "ast_official",
    dict(model_args=dict(arguments, num_heads=HEADS)),
    model.state_dict(),
    {"audio": audio},
    {
      "0": logits,
      "1/tokens": kept["tokens"],
      "1/pre_logits": kept["tokens"][:, :2].mean(1),
    },
  )


def _dinov2() -> None:
  import torch

  module = reference_code.script("dinov2.models.vision_transformer", "dinov2")
  attention = reference_code.script("dinov2.layers.attention", "dinov2")
  block = functools.partial(
    reference_code.script("dinov2.layers.block", "dinov2").Block,
    attn_class=attention.Attention,
  )
  # Images of other sizes than 28 pixels: with registers the kernel widens,
  # without the scale has an offset.
  for seed, name, size, options in (
    (42, "dinov2_official", (37, 14), dict(ffn_layer="swiglufused")),
    (
      43,
      "dinov2_official_registers",
      (14, 42),
      dict(
        num_register_tokens=3,
        interpolate_antialias=True,
        interpolate_offset=0.0,
      ),
    ),
  ):
    model = module.DinoVisionTransformer(
      img_size=28,
      patch_size=7,
      embed_dim=16,
      depth=2,
      num_heads=HEADS,
      mlp_ratio=1.75,
      init_values=1.0,
      block_chunks=0,
      block_fn=block,
      **options,
    )
    model = drawn(model, seed)
    size = tuple(n - n % 7 for n in size)  # they must fill patches
    image = images((2, *size, 3), seed)
    with torch.no_grad():
      found = model.forward_features(pixels(image))
    save(
      name,
      dict(model_args=dict(num_heads=HEADS)),
      model.state_dict(),
      {"image": image},
      {
        "0": found["x_norm_clstoken"],
        "1/tokens": torch.cat(
          [
            found["x_norm_clstoken"][:, None],
            found["x_norm_regtokens"],
            found["x_norm_patchtokens"],
          ],
          1,
        ),
      },
    )
