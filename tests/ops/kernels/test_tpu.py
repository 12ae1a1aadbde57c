"""The TPU kernels on a CPU, in interpret mode, against float64.

A case asks several features at once, since its compilation takes seconds; the
slow suite crosses every mask with every feature.
"""

import importlib.util
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from mmjax import errors
from mmjax.ops import masks
from mmjax.ops.kernels import tpu
from mmjax.ops.kernels.tiles import Flash, Whole

CASES = pathlib.Path(__file__).parent / "cases.py"
_spec = importlib.util.spec_from_file_location("cases", CASES)
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

B = 2
FLASH = Flash(16, 16)
PLAIN = dict(
  mask=None,
  bias=None,
  scale=1.0,
  softcap=None,
  dropout_rate=0.0,
  dropout_seeds=None,
  interpret=True,
)
# What a number of the dtype may be off, by the size of the largest.
WITHIN = {"float32": 3e-6, "bfloat16": 1.5e-2}


def _off(
  name,
  tiles,
  T=37,
  S=45,
  N=2,
  K=1,
  H=20,
  W=20,
  bias=None,
  softcap=None,
  rate=0.0,
  dtype="float32",
  wrong=None,
  interpret=True,
):
  """Returns the greatest differences, each by its size in the truth."""
  mask = cases.specs(T, S)[name] if isinstance(name, str) else name
  draw = np.random.default_rng(T + S + H)
  shapes = (B, T, N, H), (B, S, K, H), (B, S, K, W), (B, T, N, W)
  q, k, v, d_out = (jnp.asarray(draw.normal(size=x), dtype) for x in shapes)
  if bias is not None:
    bias = jnp.asarray(draw.normal(size=bias), jnp.float32)
  seeds = jnp.asarray(draw.integers(0, 2**32, (B, N)), jnp.uint32)
  args = q, k, v, bias

  @jax.jit
  def run(args, d_out, mask):
    def attend(q, k, v, bias):
      return tpu.attend(
        q,
        k,
        v,
        mask=mask,
        bias=bias,
        scale=0.3,
        softcap=softcap,
        dropout_rate=rate,
        dropout_seeds=seeds,
        interpret=interpret,
        tiles=tiles,
      )

    out, transpose = jax.vjp(attend, *args)
    return out, transpose(d_out)

  got = jax.tree.leaves(run(args, d_out, wrong or mask))
  want = cases.truth(args, d_out, mask, 0.3, softcap, rate, seeds)
  assert [x.shape for x in got] == [x.shape for x in want]
  assert got[0].dtype == dtype
  sizes = [np.abs(y).max() for y in want]
  if bias is not None and sizes[-1] < 1e-9:
    # All keys share it, so that it changes no weight, and its gradient is a
    # sum that vanishes: its size is that of what is summed.
    spread = jnp.broadcast_to(bias, (B, N, T, S))
    terms = cases.truth(
      (q, k, v, spread), d_out, mask, 0.3, softcap, rate, seeds
    )[-1]
    shared = tuple(i for i, n in enumerate(bias.shape) if n == 1)
    sizes[-1] = np.abs(terms).sum(shared).max()
  return [
    np.abs(np.asarray(x, float) - y).max() / max(size, 1e-30)
    for x, y, size in zip(got, want, sizes, strict=True)
  ]


FAST = {
  "whole-none": dict(
    name="none", tiles=Whole(2, 2, 1, 128, 2), K=2, W=12, T=19, S=21
  ),
  "whole-causal": dict(
    name="causal_late",
    tiles=Whole(1, 1, 2, 128, 2),
    bias=(1, 2, 37, 45),
    softcap=2.0,
  ),
  "whole-segments": dict(
    name="segments", tiles=Whole(1, 1, 1, 128), rate=0.3, dtype="bfloat16"
  ),
  "whole-lengths": dict(
    name="lengths",
    tiles=Whole(2, 1, 2, 128, 4, 0, Whole(1, 1, 2, 128)),
    bias=(2, 1, 1, 45),
    rate=0.2,
  ),
  # Of the whole grid, in raster order; and tokens laid column by column within
  # the kernel, and dropped as before.
  "whole-column": dict(
    name="column", tiles=Whole(1, 1, 2, 128), T=68, S=68, rate=0.3, softcap=2.0
  ),
  "whole-lines": dict(
    name=masks.Column(16, 16, 32),
    tiles=Whole(1, 4, 1, 256, 4),
    N=8,
    K=8,
    H=32,
    W=32,
    T=528,
    S=528,
    rate=0.3,
    softcap=2.0,
  ),
  # Keys move on with the queries, in one tile for several hundred of them.
  "whole-row": dict(
    name=masks.Row(128, 16, 32),
    tiles=Whole(1, 1, 2, 512, 2),
    T=640,
    S=640,
    rate=0.3,
    softcap=2.0,
  ),
  # Heads side by side take turns after so many keys, in both passes.
  "whole-turns": dict(
    name=masks.Local(200, 70),
    tiles=Whole(1, 4, 1, 128, 4, 128),
    N=4,
    K=4,
    H=32,
    W=32,
    T=200,
    S=300,
    bias=(1, 4, 200, 300),
    rate=0.3,
    softcap=2.0,
  ),
  # [B T N*H]: four heads of 32 share a tile of lanes, or one of 128 has it.
  "whole-shared": dict(
    name="none", tiles=Whole(2, 4, 1, 128, 4), N=4, K=4, H=32, W=32, T=19, S=21
  ),
  "whole-shared-loop": dict(
    name="segments",
    tiles=Whole(1, 8, 1, 128, 4),
    N=8,
    K=8,
    H=32,
    W=32,
    bias=(1, 8, 37, 45),
    rate=0.3,
    softcap=2.0,
  ),
  # Heads of 48 end within tiles: eight fill three of these together.
  "whole-across": dict(
    name="causal_late",
    tiles=Whole(1, 8, 1, 128, 8),
    N=8,
    K=8,
    H=48,
    W=48,
    rate=0.2,
    dtype="bfloat16",
  ),
  "whole-across-loop": dict(
    name="segments",
    tiles=Whole(1, 32, 1, 128, 8),
    N=32,
    K=32,
    H=24,
    W=24,
    bias=(1, 1, 37, 45),
  ),
  "whole-wide": dict(
    name="causal_late",
    tiles=Whole(1, 2, 1, 128, 2),
    K=2,
    H=128,
    W=128,
    dtype="bfloat16",
  ),
  # Query heads of one key head in a loop, some a program; and all of several.
  "whole-grouped-loop": dict(
    name="lengths",
    tiles=Whole(1, 1, 4, 128, 2, 0, Whole(1, 1, 2, 128, 1)),
    N=8,
    K=1,
    H=128,
    W=128,
    rate=0.3,
    softcap=2.0,
  ),
  "whole-grouped": dict(
    name="causal_late",
    tiles=Whole(2, 2, 2, 128, 4),
    N=8,
    K=4,
    H=128,
    W=128,
    bias=(1, 8, 37, 45),
    dtype="bfloat16",
  ),
  "flash-none": dict(name="none", tiles=FLASH, K=2, W=12, T=16, S=21),
  "flash-causal": dict(
    name="causal_late", tiles=FLASH, bias=(1, 2, 37, 45), softcap=2.0
  ),
  "flash-packed": dict(
    name="packed", tiles=FLASH, rate=0.3, dtype="bfloat16", T=45
  ),
}


@pytest.mark.parametrize("case", FAST)
def test_values_and_gradients(case):
  off = _off(**FAST[case])
  assert max(off) < WITHIN[FAST[case].get("dtype", "float32")], off


@pytest.mark.parametrize("tiles", [Whole(1, 1, 2, 128), FLASH])
def test_a_wrong_mask_is_noticed(tiles):
  off = _off("causal", tiles, T=17, S=17, wrong=masks.Causal(1))
  assert min(off) > 0.05, off


@pytest.mark.slow
@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
  "mask",
  [
    masks.Column(128, 16, 32),
    masks.Conv(128, 16, 32, 5),
    masks.Local(100, 70),
    masks.Banded(64) & masks.KeyPadding(jnp.array([640, 300])),
    masks.Row(128, 16, 32)
    & masks.Segments(
      cases.ids(640, [(1, 640)], [(1, 300), (2, 200)]),
      cases.ids(640, [(1, 640)], [(1, 300), (2, 200)]),
    ),
  ],
  ids=str,
)
def test_keys_that_move_on_with_the_queries(mask, packed, dtype):
  given = dict(T=640, S=640, rate=0.2, softcap=3.0, dtype=dtype)
  tiles = Whole(1, 1, 2, 512, 2)
  if packed:
    given |= dict(K=2, H=64, W=64)
    tiles = Whole(1, 2, 1, 512, 2)
  off = _off(mask, tiles, **given)
  assert max(off) < WITHIN[dtype], off


@pytest.mark.slow
@pytest.mark.parametrize("bias", [None, (1, 2, 68, 68)])
@pytest.mark.parametrize("tiles", [Whole(1, 1, 2, 128), FLASH, None])
def test_columns_are_those_of_the_grid(tiles, bias):
  given = dict(T=68, S=68, rate=0.2, bias=bias)
  assert max(_off("column", tiles, **given)) < WITHIN["float32"]
  wrong = masks.Column(20, 8, 6)
  off = _off("column", tiles, wrong=wrong, **given)
  assert min(off) > 0.05, off


FEATURES = (
  dict(T=53, S=61, W=12, K=2),
  dict(N=6, K=2, bias=(2, 6, 37, 45), softcap=3.0),
  dict(rate=0.4, H=16, W=40, bias=(1, 1, 37, 1)),
  dict(T=20, S=36, N=4, K=4, bias=(1, 4, 20, 36), rate=0.1, softcap=1.5),
  dict(N=2, K=2, H=64, W=64, bias=(1, 2, 37, 45), rate=0.2),
  dict(N=4, K=2, H=128, W=128, bias=(1, 1, 37, 45), rate=0.2),
)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("feature", range(len(FEATURES)))
@pytest.mark.parametrize("kernel", ["whole", "flash", "auto"])
@pytest.mark.parametrize("name", cases.specs(1, 1))
def test_every_mask_with_every_feature(name, kernel, feature, dtype):
  given = FEATURES[feature]
  groups = given.get("N", 2) // given.get("K", 1)
  share = 2 if given.get("H") == 64 else 1  # heads in a tile of lanes
  whole = Whole(1, share, groups, 128, share)
  tiles = {"whole": whole, "flash": FLASH, "auto": None}
  off = _off(name, tiles[kernel], dtype=dtype, **given)
  assert max(off) < WITHIN[dtype], off


@pytest.mark.slow
@pytest.mark.parametrize("tiles", [Whole(2, 1, 2, 128), FLASH])
@pytest.mark.parametrize("many", list(itertools.product((0, 1), repeat=4)))
def test_a_bias_of_any_broadcast(many, tiles):
  full = (2, 4, 37, 45)
  bias = tuple(n if m else 1 for m, n in zip(many, full, strict=True))
  off = _off("causal", tiles, N=4, K=2, bias=bias, rate=0.2)
  assert max(off) < WITHIN["float32"], off


@pytest.mark.slow
@pytest.mark.parametrize("tiles", [Whole(1, 1, 2, 128), FLASH])
@pytest.mark.parametrize("name", ["none", "causal", "segments"])
def test_no_races(name, tiles):
  given = dict(bias=(1, 2, 37, 45), rate=0.2)
  interpret = pltpu.InterpretParams(detect_races=True)
  off = _off(name, tiles, interpret=interpret, **given)
  assert max(off) < WITHIN["float32"], off
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call

  assert not interpret_pallas_call.races.races_found


def _plain(q, k, v, tiles, **given):
  return tpu.attend(q, k, v, tiles=tiles, **{**PLAIN, **given})


@pytest.mark.parametrize("tiles", [Whole(1, 1, 1, 128), FLASH])
def test_rows_that_see_nothing_give_and_get_nothing(tiles):
  q = jnp.ones((1, 20, 1, 16))
  nothing = masks.Causal(-30)
  out, transpose = jax.vjp(
    lambda *qkv: _plain(*qkv, tiles, mask=nothing), q, q, q
  )
  for x in (out, *transpose(q)):
    np.testing.assert_array_equal(x, 0.0)


@pytest.mark.parametrize("tiles", [Whole(1, 1, 1, 128), FLASH])
def test_a_bias_of_minus_infinity_is_a_mask(tiles):
  q = jax.random.normal(jax.random.key(0), (1, 18, 1, 16))
  bias = jnp.where(jnp.arange(18) < 16, -jnp.inf, 0.0).reshape(1, 1, 1, 18)
  got = _plain(q, q, q, tiles, bias=bias, scale=0.0)
  want = jnp.broadcast_to(q[:, 16:].mean(1, keepdims=True), q.shape)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_what_is_refused_is_said():
  shape = (1, 5, 2, 8)
  assert tpu.refuses(shape, shape, shape, jnp.bfloat16) is None
  assert "XLA" in tpu.refuses(shape, shape, shape, "bfloat16", named=False)
  long = (1, 4096, 2, 64)
  assert tpu.refuses(long, long, long, "bfloat16", named=False) is None
  # 7 and 114 MiB of scores; heads of 64 lie as the kernel reads them.
  for batch, width, stays in ((4, 72, True), (64, 72, False), (4, 64, False)):
    vit = (batch, 197, 12, width)
    why = tpu.refuses(vit, vit, vit, "bfloat16", named=False)
    assert ("stay in vector memory" in why) if stays else why is None
  one, cache = (4, 1, 12, 64), (4, 1024, 12, 64)
  why = tpu.refuses(one, cache, cache, "bfloat16", named=False)
  assert "1 queries are few" in why
  assert tpu.refuses(one, cache, cache, "bfloat16") is None
  assert "float16" in tpu.refuses(shape, shape, shape, "float16")
  wide = (1, 5, 2, 2000)
  assert "head_dim 2000" in tpu.refuses(wide, wide, shape, "float32")
  many = (2**14, 5, 16, 8)
  assert "seeds" in tpu.refuses(many, many, many, "float32", dropout_rate=0.1)
  long = (1, 2**20, 1, 128)
  assert "blocks" in tpu.refuses(long, long, long, "bfloat16")
  q = jnp.zeros(shape)
  with pytest.raises(errors.InputError, match="differ"):
    _plain(q, q, q.astype(jnp.bfloat16), None)
  with pytest.raises(errors.InputError, match="head_dim 2000"):
    _plain(*(jnp.zeros(wide),) * 3, None)


def _choice(B, T, S, N, K, H, mask=None, bias=None, chip=None):
  return tpu.choose(
    (B, T, N, H),
    (B, S, K, H),
    (B, S, K, H),
    "bfloat16",
    mask=mask,
    bias_shape=bias,
    chip=chip,
  )


def test_blocks_are_those_that_a_chip_computes_a_mask_in_at_least_cost():
  for chip, causal, banded in ((None, 512, 256), ("v6e", 1024, 512)):
    for mask, size in (
      (masks.Causal(), causal),
      (masks.Banded(256), banded),
      (None, 1024),
    ):
      tiles = _choice(1, 2048, 2048, 12, 12, 128, mask, chip=chip)
      assert tiles == Flash(size, size), (chip, mask)


def test_short_sequences_are_attended_to_whole():
  for T in (1, 20, 196, 197, 257, 729, 1024, 1500):
    tiles = _choice(64, T, T, 12, 12, 64)
    assert isinstance(tiles, Whole), T
    assert 12 % tiles.kv_heads == 64 % tiles.batch == 0
    assert tiles.rows == T or tiles.rows % 128 == 0
  for T in (1537, 2048, 32768):
    tiles = _choice(1, T, T, 12, 12, 128)
    assert isinstance(tiles, Flash) and tiles.block_q >= 512, T


def test_a_trained_bias_keeps_the_query_heads_of_a_key_head_together():
  tiles = _choice(2, 300, 300, 8, 2, 64, bias=(1, 8, 300, 300))
  assert isinstance(tiles, Whole) and tiles.groups == 4
  assert isinstance(
    _choice(2, 1500, 1500, 8, 1, 64, bias=(1, 8, 1500, 1500)), Flash
  )
