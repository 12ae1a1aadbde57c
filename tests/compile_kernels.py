"""Compiles the TPU attention kernels for a chip that is not there.

  python tests/compile_kernels.py v5e [case ...]

Run by test_tpu_aot. Prints a line a case: seconds, temporary memory; exits with
an assertion on the first that fails. Nothing is executed.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.ops import masks
from mmjax.ops.bias import Buckets
from mmjax.ops.kernels import tpu

TOPOLOGIES = {
  "v5e": "v5e:2x2",
  "v5p": "v5p:2x2x1",
  "v6e": "v6e:2x2",
  "tpu7x": "tpu7x:2x2x1",
}


def _ids(batch, length):
  return jax.ShapeDtypeStruct((batch, length), jnp.int32)


def _lengths(batch):
  return jax.ShapeDtypeStruct((batch,), jnp.int32)


def _self(batch, length, heads, width, mask=None, **more):
  shape = (batch, length, heads, width)
  return dict(q=shape, k=shape, mask=mask, **more)


DALLE = (256, 32, 32)
# Batches and heads are few where more would be more of the same program. Up to
# 320 tokens 16 heads lie side by side.
CASES = {
  "vit-196": _self(8, 196, 12, 64),
  "vit-197": _self(8, 197, 12, 64),
  "clip-257": _self(8, 257, 16, 64),
  "vit-h-257": _self(4, 257, 16, 80),
  "so400m-729": _self(4, 729, 16, 72),
  "vit-1024": _self(4, 1024, 16, 64),
  "lxmert-20x36": dict(
    q=(16, 20, 12, 64),
    k=(16, 36, 12, 64),
    mask=masks.KeyPadding(_lengths(16)),
  ),
  "whisper-1500": _self(2, 1500, 8, 64),
  "whisper-448x1500": dict(q=(2, 448, 8, 64), k=(2, 1500, 8, 64), mask=None),
  "paligemma-384": dict(
    q=(2, 384, 8, 256),
    k=(2, 384, 1, 256),
    mask=masks.PrefixLengths(_lengths(2)) | masks.Causal(),
  ),
  "gemma2-1000": dict(
    q=(2, 1000, 16, 256), k=(2, 1000, 8, 256), mask=masks.Causal(), softcap=50.0
  ),
  "dalle-row": _self(1, 1280, 62, 64, masks.Row(*DALLE)),
  "dalle-column": _self(1, 1280, 62, 64, masks.Column(*DALLE)),
  "dalle-conv": _self(1, 1280, 62, 64, masks.Conv(*DALLE, 11)),
  "gpt3-2048": _self(1, 2048, 4, 128, masks.Causal()),
  "gpt3-2048-banded": _self(1, 2048, 4, 128, masks.Banded(256)),
  "navit-4096": _self(
    2, 4096, 4, 64, masks.Segments(_ids(2, 4096), _ids(2, 4096))
  ),
  "navit-1000": _self(
    2, 1000, 4, 64, masks.Segments(_ids(2, 1000), _ids(2, 1000))
  ),
  "t5-2048": _self(1, 2048, 2, 64, table=32),
  "t5-1999-causal": _self(
    2, 1999, 2, 64, masks.Causal(), table=32, rate=0.1, softcap=30.0
  ),
  "causal-32k": _self(1, 32768, 1, 128, masks.Causal()),
  # Everything at once, at odd lengths, by either kernel.
  "all-whole": dict(
    q=(2, 257, 16, 64),
    k=(2, 257, 8, 64),
    mask=masks.Causal() & masks.KeyPadding(_lengths(2)),
    bias=(1, 16, 257, 257),
    rate=0.1,
    softcap=30.0,
  ),
  "all-flash": dict(
    q=(2, 1999, 4, 64),
    k=(2, 1999, 2, 64),
    mask=masks.Causal() & masks.Segments(_ids(2, 1999), _ids(2, 1999)),
    bias=(1, 4, 1999, 1999),
    rate=0.1,
    softcap=30.0,
  ),
  "float32": _self(1, 320, 16, 128, dtype="float32"),
  "float32-flash": _self(
    1, 2047, 2, 72, masks.Local(300, 9), dtype="float32", bias=(1, 1, 1, 2047)
  ),
}


def lower(chip, case, tiles=None):
  """Lowers the forward and backward pass of a case for a chip."""
  device = topologies.get_topology_desc(
    platform="tpu", topology_name=TOPOLOGIES[chip]
  ).devices[0]
  mesh = Mesh(np.array([device]), ("x",))
  here = NamedSharding(mesh, PartitionSpec())

  def shaped(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=here)

  dtype = case.get("dtype", "bfloat16")
  q, k = shaped(case["q"], dtype), shaped(case["k"], dtype)
  bias = case.get("bias")
  bias = None if bias is None else shaped(bias, jnp.float32)
  if "table" in case:
    bias = Buckets(shaped((case["q"][2], case["table"]), jnp.float32))
  mask = jax.tree.map(lambda x: shaped(x.shape, x.dtype), case["mask"])
  seeds = shaped((case["q"][0], case["q"][2]), jnp.uint32)

  def step(q, k, v, bias, mask, seeds, d_out):
    def attend(q, k, v, bias):
      return tpu.attend(
        q,
        k,
        v,
        mask=mask,
        bias=bias,
        scale=0.1,
        softcap=case.get("softcap"),
        dropout_rate=case.get("rate", 0.0),
        dropout_seeds=seeds,
        tiles=tiles,
      )

    out, transpose = jax.vjp(attend, q, k, v, bias)
    return out, transpose(d_out)

  with jax.set_mesh(mesh):
    return jax.jit(step).lower(q, k, k, bias, mask, seeds, q)


def main(chip, *names):
  """Compiles the cases; exits with an error if one fails."""
  if chip not in TOPOLOGIES or not CASES.keys() >= set(names):
    known = f"chips {', '.join(TOPOLOGIES)}; cases {', '.join(CASES)}"
    raise SystemExit(f"{' '.join((chip, *names))}: known are {known}")
  for name in names or CASES:
    start = time.time()
    program = lower(chip, CASES[name]).compile()
    temporary = program.memory_analysis().temp_size_in_bytes
    kernels = program.as_text().count("tpu_custom_call")
    flops = program.cost_analysis()["flops"]
    print(
      f"{chip} {name}: {time.time() - start:.0f} s, {kernels} kernels, "
      f"temporary {temporary} bytes, {flops:.3g} flops",
      flush=True,
    )
    assert kernels >= 2 and flops > 0
    if "table" in CASES[name]:  # and no bias of 2048 x 2048 for each head
      assert temporary < 0.02e9
    if name == "causal-32k":  # of a head of a row, where splash takes 0.2e9
      assert temporary < 0.05e9


if __name__ == "__main__":
  main(*sys.argv[1:])
