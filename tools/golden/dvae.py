"""dVAE: OpenAI's own package, whole and its decoder alone; FLAVA's encoder.

Needs `pip install --no-deps DALL-E==0.1` beside torch, transformers, attrs and
requests. Its lower bounds on sizes are switched off for tiny models.
"""

import numpy as np
from make_golden import redraw, save, save_hub


def make() -> None:
  """Records the cases."""
  import torch

  # Squares of 8 pixels, as tokens are: noise alone would give one id only.
  generator = np.random.default_rng(3)
  squares = 6 * generator.normal(size=(2, 3, 2, 3)).repeat(8, 1).repeat(8, 2)
  image = np.float32(squares + generator.normal(size=(2, 24, 16, 3)))
  nchw = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  _openai(image, nchw, generator)
  _flava(image, nchw)


def amplify(model, factor: float) -> None:
  """Multiplies the last kernels of paths, which gains of 1/n^2 would hide."""
  for name, value in model.named_parameters():
    if "conv_4.w" in name:
      value *= factor


def _openai(image, nchw, generator) -> None:
  import attr
  import torch
  from dall_e.decoder import Decoder
  from dall_e.encoder import Encoder

  sizes = dict(n_hid=4, n_blk_per_group=2, vocab_size=37)
  with attr.validators.disabled():
    encoder = redraw(Encoder(**sizes))
    decoder = redraw(Decoder(n_init=5, **sizes), seed=1)
  with torch.no_grad():
    amplify(encoder, 32)
    amplify(decoder, 32)
    logits = encoder(nchw)
    soft = torch.softmax(logits, 1)
    ids = logits.argmax(1)
    statistics = decoder(soft)
    codes = torch.from_numpy(generator.integers(0, 37, (2, 3, 2)))
    hard = torch.nn.functional.one_hot(codes, 37).permute(0, 3, 1, 2).float()
    decoded = decoder(hard)
  assert len(ids.unique()) > 2
  theirs = dict(decoder.state_dict())
  save(
    "dvae_openai",
    {},
    {
      **{f"encoder.{k}": v for k, v in encoder.state_dict().items()},
      **{f"decoder.{k}": v for k, v in theirs.items()},
    },
    {"image": image},
    {
      "0": statistics.permute(0, 2, 3, 1),
      "1/logits": logits.permute(0, 2, 3, 1),
      "1/ids": ids,
      "1/codes": soft.permute(0, 2, 3, 1),
    },
  )
  save(
    "dvae_openai_decoder",
    {},
    theirs,
    {"codes": codes.numpy().astype(np.int32)},
    {"0": decoded.permute(0, 2, 3, 1)},
  )


def _flava(image, nchw) -> None:
  import torch
  from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

  config = FlavaImageCodebookConfig(
    num_groups=3,  # there are 4 all the same: it changes the gain only
    num_blocks_per_group=1,
    hidden_size=8,
    vocab_size=29,
  )
  model = redraw(FlavaImageCodebook(config), seed=2)
  with torch.no_grad():
    amplify(model, 8)
    logits = model(nchw)
    ids = model.get_codebook_indices(nchw)
  assert len(ids.unique()) > 2
  save_hub(
    "dvae_flava",
    model,
    {"image": image},
    {"0": logits.permute(0, 2, 3, 1), "1/ids": ids},
  )
