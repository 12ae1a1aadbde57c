"""The reader of compiled programs, on lines as compilers print them."""

import jax
import jax.numpy as jnp
import pytest

from mmjax.parallel import collectives, mesh, rules

TEXT = """
HloModule jit_step, is_scheduled=true
%fused (p: f32[8,4]) -> f32[8,4] {
  ROOT %add.1 = f32[8,4]{1,0} add(%p, %p), metadata={op_name="jit(step)/add"}
}
ENTRY %main {
  %p0 = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %ag = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%p0), dimensions={0}
  %ar = (f32[8]{0}, f32[2,3]{1,0}) all-reduce(%a, %b), to_apply=%sum
  %start = (f32[4]{0}, f32[32]{0}) all-gather-start(%c), dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  %cp = pred[5]{0} collective-permute(%d)
  %aa = /*index=1*/ f32[] constant(0)
  %rs = f32[<=7]{0} reduce-scatter(%e)
  ROOT %t = (f32[]) tuple(%aa)
}
"""


def test_reads_shapes_bytes_and_scopes():
  found = {v.name: v for v in collectives.values(TEXT)}
  assert found["add.1"].scope == "jit(step)/add"
  assert found["p0"].opcode == "parameter"
  assert found["p0"].shape == (16, 128) and found["p0"].bytes == 16 * 128 * 2


def test_collectives_one_by_one():
  got = [(v.opcode, v.shape, v.bytes) for v in collectives.collectives(TEXT)]
  assert got == [
    ("all-gather", (64, 128), 64 * 128 * 2),
    ("all-reduce", (8,), 32),
    ("all-reduce", (2, 3), 24),
    ("all-gather", (4,), 16),
    ("all-gather", (32,), 128),
    ("collective-permute", (5,), 5),
    ("reduce-scatter", (7,), 28),
  ]


@pytest.mark.parametrize("planted", [False, True])
def test_a_planted_gather_of_the_batch_is_found(planted):
  here = rules.Layout(mesh.make_mesh({"data": 8}))

  def f(x):
    y = jnp.sin(x)
    if planted:
      y = rules.constrain(y, None, None)
    return (y * 2).sum(1)

  place = here.batch_sharding(2)
  x = jax.ShapeDtypeStruct((24, 10), jnp.float32, sharding=place)
  jitted = here.jit(f, in_shardings=place)
  text = jitted.lower(x).compile().as_text()
  moved = [v.shape for v in collectives.collectives(text)]
  assert ((24, 10) in moved) is planted
  assert bool(collectives.whole_batch(text, 24, width=1)) is planted
