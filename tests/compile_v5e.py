"""Compiles SigLIP for v5e:4x4 and reads the program; run by test_sharding."""

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from mmjax.build import build
from mmjax.parallel import collectives, mesh, rules
from mmjax.train import setup

BATCH, EMBED, WIDTH, LENGTH = 4096, 256, 256, 16
TOWER = dict(width=WIDTH, depth=4, heads=4, mlp=4 * WIDTH, remat="dots")
MODEL = dict(
  name="dual_encoder",
  dtype="bfloat16",
  image=dict(name="vit", patch=16, pool="gap", **TOWER),
  text=dict(name="text_encoder", vocab_size=8000, length=LENGTH, **TOWER),
  embed_dim=EMBED,
  bias_init=-10.0,
)


def main():
  """Prints the largest collectives; exits with an assertion if too large."""
  pod = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
  task = build("tasks", name="contrastive", model=MODEL, dtype="bfloat16")
  shapes = {
    "image": jax.ShapeDtypeStruct((BATCH, 224, 224, 3), jnp.uint8),
    "text": jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32),
  }
  for sizes in ({"fsdp": 16}, {"data": 2, "fsdp": 4, "tensor": 2}):
    layout = rules.Layout(mesh.make_mesh(sizes, pod.devices))
    run = setup.assemble(
      task, dict(name="adamw", lr=1e-3), shapes, layout, steps=10
    )
    program = run.step.lower(run.state_shapes, run.batch_shapes).compile()
    text = program.as_text()
    limit = max(
      *(x.size * 4 for x in jax.tree.leaves(run.state_shapes.params)),
      BATCH * EMBED * 4,
    )
    if layout.mesh.shape["tensor"] > 1:
      # Heads and mlp are split, so each block sums its output over `tensor`:
      # the residual stream of this device's own rows, and no more.
      patches = (224 // 16) ** 2
      limit = max(limit, BATCH // layout.batch_shards * patches * WIDTH * 2)
    found = collectives.collectives(text)
    assert found
    largest = max(found, key=lambda v: v.bytes)
    print(sizes, len(found), "collectives, largest", largest, "limit", limit)
    assert largest.bytes <= limit
    width = max(EMBED, BATCH // layout.batch_shards)
    for rows in (BATCH, BATCH * 196, BATCH * LENGTH):
      whole = collectives.whole_batch(text, rows, width=width)
      assert not whole, whole[0]
    memory = program.memory_analysis()
    print(f"  temporaries {memory.temp_size_in_bytes / 2**30:.2f} GiB a chip")


if __name__ == "__main__":
  main()
