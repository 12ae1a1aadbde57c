"""CapPa of big_vision, computed by its own code; see `golden.big_vision`.

  BIG_VISION=~/big_vision python tools/make_golden.py captioner

Half of the rows are predicted causally, the other half, of the same images,
in parallel, which the reference does in training only: with a probability of 1
it is no matter of chance. Ids are those of its own cache.
"""

import functools
from typing import Any

import numpy as np
from golden.big_vision import drawn, models, nested
from make_golden import images, save

LENGTH, VOCAB = 9, 47
ENCODER = dict(
  num_heads=3, num_layers=2, mlp_dim=30, emb_dim=24, patches=(4, 4)
)
# Another width than the encoder's.
DECODER = dict(
  decoder_num_heads=5,
  decoder_num_layers=3,
  decoder_mlp_dim=22,
  decoder_emb_dim=20,
  vocab_size=VOCAB,
  seq_len=LENGTH,
  masked_pred_prob=1.0,
  masking_ratio=1.0,
)
TEXT = np.array(
  [[3, 7, 9, 1, 0, 0, 0], [5, 46, 0, 6, 8, 30, 1], [12, 2, 8, 4, 21, 13, 17]],
  np.int32,
)


def greedy(model: Any, variables: Any, image: np.ndarray) -> np.ndarray:
  """Returns ids [B 1+T]: the start, and the best of each step."""
  import jax

  B = len(image)
  whole = np.zeros((B, LENGTH), np.int32)
  key = jax.random.key(0)
  shapes = jax.eval_shape(lambda: model.init(key, image, whole, decode=True))
  cache = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes["cache"])
  encoded = jax.jit(lambda: model.apply(variables, image, method="encode"))()
  step = jax.jit(
    lambda cache, tokens: model.apply(
      {**variables, "cache": cache},
      encoded,
      tokens,
      decode=True,
      mutable=["cache"],
      method="decode",
    )
  )
  ids = [np.zeros(B, np.int32)]
  for _ in range(LENGTH):
    logits, new = step(cache, ids[-1][:, None])
    cache = new["cache"]
    ids.append(np.asarray(logits[:, 0].argmax(-1), np.int32))
  found = np.stack(ids, 1)
  forced = jax.jit(model.apply)(variables, image, found[:, 1:])
  np.testing.assert_array_equal(forced.argmax(-1), found[:, 1:])
  return found


def make() -> None:
  """Records the cases."""
  import jax

  cappa = models("proj.cappa.cappa")
  for name, config, options, pixels in (
    ("captioner", {}, dict(decoder_bias=False), (16, 16)),
    (
      "captioner_scan",
      {"seq_len": LENGTH},
      dict(scan=True, posemb_type="sincos2d"),
      (8, 20),
    ),
  ):
    model = cappa.Model(**ENCODER, **DECODER, **options)
    image = images((3, *pixels, 3), seed=9)
    tensors = drawn(model, image, TEXT)
    variables = nested(tensors)

    def run(variables=variables, model=model, image=image, **keywords):
      apply = functools.partial(model.apply, **keywords)
      return jax.jit(apply)(variables, image, TEXT)

    causal = run()
    parallel = run(train=True, rngs={"dropout": jax.random.key(0)})
    encoded, out = run(return_enc_features=True)
    ids = greedy(model, variables, image)

    def twice(x):
      return np.concatenate([x, x])

    save(
      name,
      config,
      tensors,
      {
        "image": twice(image),
        "tokens": twice(TEXT),
        "parallel": np.arange(6) >= 3,
      },
      {
        "0": np.concatenate([causal, parallel]),
        "1/image": twice(encoded),
        "1/pre_logits": twice(out["pre_logits"]),
      },
      {
        "greedy": {
          # Rows end early, and not all at once.
          "settings": dict(length=LENGTH + 1, eos_ids=[int(ids[0, 2])]),
          "prompt": np.zeros((3, 1), np.int32),
          "ids": ids,
          "image": image,
        }
      },
    )
