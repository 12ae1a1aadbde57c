"""VQGAN: taming-transformers' own modules, and vqgan-jax's.

Needs `pip install --no-deps taming-transformers==0.0.1`, einops, Flax, and
github patil-suraj/vqgan-jax (no package) on PYTHONPATH. Their norms have 32
groups whatever the width, so that a tiny model still has 700,000 parameters:
kernels are drawn of three values, which compress.
"""

import json
import sys
import types

import numpy as np
from make_golden import images, redraw, save

SIZES = dict(
  ch=32,
  ch_mult=(1, 2),
  num_res_blocks=1,
  attn_resolutions=(8,),
  resolution=16,
  z_channels=5,
  in_channels=3,
  out_ch=3,
  double_z=False,
  dropout=0.0,
)
CODES = dict(n_embed=37, embed_dim=6)


def make() -> None:
  """Records the cases."""
  image = images((2, 8, 12, 3))
  _taming(image)
  _gumbel(image)
  _flax(image)


def ternary(x: np.ndarray, fan_in: int, seed: int) -> np.ndarray:
  """Draws -1, 0 and 1, most of them 0, of variance 1 / fan_in."""
  zeros = 0.965 if 3 in x.shape else 0.75  # a 1x1 kernel has few values
  half = (1 - zeros) / 2
  values = np.random.default_rng(seed).choice(
    [-1.0, 0.0, 1.0], x.shape, p=[half, zeros, half]
  )
  return np.float32(values / (2 * half * fan_in) ** 0.5)


def _taming(image) -> None:
  import torch
  from taming.modules.diffusionmodules.model import Decoder, Encoder
  from taming.modules.vqvae.quantize import VectorQuantizer

  # VQModel itself takes pytorch_lightning: it joins these and nothing more.
  model = torch.nn.Module()
  model.encoder, model.decoder = Encoder(**SIZES), Decoder(**SIZES)
  width, latent = CODES["embed_dim"], SIZES["z_channels"]
  model.quantize = VectorQuantizer(CODES["n_embed"], width, beta=0.25)
  model.quant_conv = torch.nn.Conv2d(latent, width, 1)
  model.post_quant_conv = torch.nn.Conv2d(width, latent, 1)
  redraw(model)
  with torch.no_grad():
    for i, value in enumerate(model.parameters()):
      if value.ndim == 4 and value.numel() > 1000:
        drawn = ternary(value.numpy(), value[0].numel(), i)
        value.copy_(torch.from_numpy(drawn))
    x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    z = model.quant_conv(model.encoder(x))
    quantised, loss, (_, _, ids) = model.quantize(z)
    out = model.decoder(model.post_quant_conv(quantised))
  B, _, Y, X = z.shape
  ids = ids.reshape(B, Y, X)
  assert len(ids.unique()) > 8
  save(
    "vqgan_taming",
    {},
    {**model.state_dict(), "loss.perceptual_loss.lin0.weight": torch.ones(2)},
    {"image": image},
    {
      "0": out.permute(0, 2, 3, 1),
      "1/ids": ids,
      "1/quantised": quantised.permute(0, 2, 3, 1),
      # Both terms have one value; theirs is the sum of 1 and 0.25 of them.
      "1/codebook": loss / 1.25,
      "1/commitment": loss / 1.25,
    },
  )


def _gumbel(image) -> None:
  """GumbelVQ without noise, which it adds in evaluation too."""
  import torch
  from taming.modules.diffusionmodules.model import Decoder, Encoder
  from taming.modules.vqvae import quantize

  sizes = dict(SIZES, ch_mult=(1, 1), z_channels=CODES["embed_dim"])
  width = CODES["embed_dim"]
  model = torch.nn.Module()
  model.encoder, model.decoder = Encoder(**sizes), Decoder(**sizes)
  model.quantize = quantize.GumbelQuantize(
    width, width, CODES["n_embed"], kl_weight=1.0
  )
  model.quant_conv = torch.nn.Conv2d(width, width, 1)
  model.post_quant_conv = torch.nn.Conv2d(width, width, 1)
  redraw(model, 60)

  def still(logits, tau, dim, hard):
    assert hard and tau == 1.0 and dim == 1
    return torch.zeros_like(logits).scatter(dim, logits.argmax(dim)[:, None], 1)

  real = quantize.F.gumbel_softmax
  quantize.F.gumbel_softmax = still
  try:
    with torch.no_grad():
      for i, value in enumerate(model.parameters()):
        if value.ndim == 4 and value.numel() > 1000:
          drawn = ternary(value.numpy(), value[0].numel(), 50 + i)
          value.copy_(torch.from_numpy(drawn))
      x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
      z = model.quant_conv(model.encoder(x))
      quantised, loss, (_, _, ids) = model.quantize(z)
      out = model.decoder(model.post_quant_conv(quantised))
  finally:
    quantize.F.gumbel_softmax = real
  assert len(ids.unique()) > 8
  save(
    "vqgan_gumbel",
    {},
    model.state_dict(),
    {"image": image},
    {
      "0": out.permute(0, 2, 3, 1),
      "1/ids": ids,
      "1/quantised": quantised.permute(0, 2, 3, 1),
      "1/kl": loss,
    },
  )


def _flax(image) -> None:
  import jax
  from flax import traverse_util

  # transformers 5 has no Flax left, of which vqgan-jax takes a base class
  # that its modules do not use.
  stub = types.ModuleType("transformers.modeling_flax_utils")
  stub.FlaxPreTrainedModel = object
  sys.modules[stub.__name__] = stub
  import transformers

  if not hasattr(transformers, "PretrainedConfig"):
    transformers.PretrainedConfig = transformers.PreTrainedConfig
  from vqgan_jax.configuration_vqgan import VQGANConfig
  from vqgan_jax.modeling_flax_vqgan import VQModule

  config = VQGANConfig(**SIZES, **CODES)
  module = VQModule(config)
  params = module.init(jax.random.key(0), image)["params"]
  generator = np.random.default_rng(5)
  drawn = {}
  for i, (name, x) in enumerate(
    sorted(traverse_util.flatten_dict(params, sep="/").items())
  ):
    fan_in = int(np.prod(x.shape[:-1]))
    if x.ndim == 4 and x.size > 1000:
      drawn[name] = ternary(x, fan_in, 100 + i)
    elif x.ndim == 1:
      noise = 0.3 * generator.normal(size=x.shape)
      drawn[name] = np.float32(noise + name.endswith("scale"))
    else:
      noise = generator.normal(size=x.shape)
      over = x.shape[1] if name.endswith("embedding") else fan_in
      drawn[name] = np.float32(noise / over**0.5)
  variables = {"params": traverse_util.unflatten_dict(drawn, sep="/")}
  with jax.default_matmul_precision("highest"):
    quantised, ids = module.apply(variables, image, method=module.encode)
    out, _ = module.apply(variables, image)
  ids = np.asarray(ids).reshape(quantised.shape[:3])
  assert len(np.unique(ids)) > 8
  save(
    "vqgan_jax",
    json.loads(config.to_json_string(use_diff=False)),
    drawn,
    {"image": image},
    {"0": np.asarray(out), "1/ids": ids, "1/quantised": np.asarray(quantised)},
  )
