"""Compiles the GPU attention kernels to machine code without a GPU.

  python -m venv /tmp/cuda && /tmp/cuda/bin/pip install \
      "jax[cuda13]" flax            # 4.3 GB; any matching jax of pyproject
  PYTHONPATH=$PWD /tmp/cuda/bin/python tools/compile_gpu.py

For each shape of real models XLA compiles forward and backward for an H100,
and `ptxas` says what each kernel takes: registers a thread, and bytes spilled to
memory, which should be 0. No kernel runs. Kernels for Hopper (wgmma) begin with
these registers and share them out anew.

  --shape NAME            one of the shapes (may be given again)
  --tiles Q,K,WARPS,STAGES x 4   instead of the chosen ones: forward, dq, dkv,
                          dbias
Exit code 0; 1 if a kernel spills or does not compile; 2 if jax has no CUDA
plugin here.
"""

import argparse
import glob
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile

# batch, queries, keys, heads, key heads, width, causal, features
SHAPES = {
  "vit196": (8, 196, 196, 12, 12, 64, False, ""),
  "vit197": (8, 197, 197, 12, 12, 64, False, ""),
  "clip257": (8, 257, 257, 16, 16, 64, False, ""),
  "clip-text77": (8, 77, 77, 8, 8, 64, True, ""),
  "vit577": (2, 577, 577, 16, 16, 64, False, ""),
  "so400m729": (2, 729, 729, 16, 16, 72, False, ""),
  "whisper1500": (2, 1500, 1500, 20, 20, 64, False, ""),
  "dalle1280": (1, 1280, 1280, 62, 62, 64, True, ""),
  "gpt3-2048": (1, 2048, 2048, 16, 16, 128, True, ""),
  "paligemma384": (1, 384, 384, 8, 1, 256, False, ""),
  "packed1024": (2, 1024, 1024, 12, 12, 64, False, "segments"),
  "everything1024": (2, 1024, 1024, 8, 4, 64, True, "bias softcap dropout"),
  "float32-197": (2, 197, 197, 12, 12, 64, False, "float32"),
}
# What XLA must know of an H100 SXM where there is none.
H100 = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32
shared_memory_per_block: 49152 shared_memory_per_core: 233472
threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
shared_memory_per_block_optin: 232448
cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536
registers_per_block_limit: 65536 } platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 2 }
device_description_str: "NVIDIA H100 80GB HBM3" """
FOUND = re.compile(
  r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, "
  r"(\d+) bytes spill loads.*?Used (\d+) registers",
  re.DOTALL,
)


def compile_shape(name: str, tiles: list[str] | None) -> None:
  """Compiles one shape in this process, with XLA_FLAGS set to dump PTX."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.experimental import topologies
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  from mmjax.ops import masks
  from mmjax.ops.kernels import gpu
  from mmjax.ops.kernels.gpu_tiles import Tiles

  device = topologies.get_topology_desc(
    "h100", platform="cuda", target_config=H100, topology="1x1x1"
  ).devices[0]
  mesh = Mesh(np.array([device]), ("x",))
  everywhere = NamedSharding(mesh, PartitionSpec())
  B, T, S, N, K, H, causal, features = SHAPES[name]

  def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

  dtype = jnp.float32 if "float32" in features else jnp.bfloat16
  q, k = array((B, T, N, H), dtype), array((B, S, K, H), dtype)
  bias = array((1, N, T, S), jnp.float32) if "bias" in features else None
  seeds = array((B, N), jnp.uint32) if "dropout" in features else None
  mask = masks.Causal() if causal else None
  if "segments" in features:
    ids = array((B, T), jnp.int32)
    mask = masks.Segments(ids, ids)
  chosen = None
  if tiles:
    chosen = tuple(Tiles(*map(int, x.split(","))) for x in tiles)

  def loss(q, k, v, bias, mask, seeds):
    out = gpu.attend(
      q,
      k,
      v,
      mask=mask,
      bias=bias,
      scale=H**-0.5,
      softcap=30.0 if "softcap" in features else None,
      dropout_rate=0.1 if "dropout" in features else 0.0,
      dropout_seeds=seeds,
      tiles=chosen,
    )
    return out.astype(jnp.float32).sum()

  wanted = (0, 1, 2) if bias is None else (0, 1, 2, 3)
  with jax.set_mesh(mesh):
    lowered = jax.jit(jax.grad(loss, wanted)).lower(q, k, k, bias, mask, seeds)
  lowered.compile()


def assemble(folder: str) -> list[tuple[str, int, int]]:
  """Returns (kernel, registers, spilled bytes) of the PTX."""
  found = []
  ptxas = _ptxas()
  for path in sorted(glob.glob(f"{folder}/*.ptx")):
    text = pathlib.Path(path).read_text()
    if "attention_" not in text:
      continue
    done = subprocess.run(
      [ptxas, "-arch=sm_90a", "-v", path, "-o", os.devnull],
      capture_output=True,
      text=True,
      check=True,
    )
    found += _kernels(done.stderr)
  return sorted(set(found))


def _kernels(text: str) -> list[tuple[str, int, int]]:
  """Returns what `ptxas` says of kernels of attention."""
  return [
    (kernel, int(registers), int(stores) + int(loads))
    for kernel, stores, loads, registers in FOUND.findall(text)
    if kernel.startswith("attention_")
  ]


def _ptxas() -> str:
  found = importlib.util.find_spec("nvidia")
  for root in (found and found.submodule_search_locations) or ():
    for path in glob.glob(f"{root}/**/bin/ptxas", recursive=True):
      return path
  raise SystemExit("no ptxas beside jax's CUDA plugin; install jax[cuda13].")


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--shape", action="append", choices=sorted(SHAPES))
  parser.add_argument("--tiles", nargs="+")
  parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if args.inside:
    compile_shape(args.shape[0], args.tiles)
    return 0
  if importlib.util.find_spec("jax_cuda13_plugin") is None:
    print("jax has no CUDA plugin here: pip install 'jax[cuda13]'.")
    return 2
  bad = 0
  print(f"{'shape':16}{'kernel':37}{'registers':>10}{'spilled bytes':>15}")
  for name in args.shape or SHAPES:
    with tempfile.TemporaryDirectory() as folder:
      flags = f"--xla_dump_to={folder} --xla_dump_emitter_re=.*"
      # The plugin would look for a driver if the platform were not the CPU.
      env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
      env["MOSAIC_GPU_DUMP_PTXAS"] = "1"  # kernels for Hopper are no PTX files
      command = [sys.executable, __file__, "--inside", "--shape", name]
      if args.tiles:
        command += ["--tiles", *args.tiles]
      done = subprocess.run(command, env=env, capture_output=True, text=True)
      if done.returncode:
        bad = 1
        print(
          f"{name:16}does not compile: {done.stderr.strip()[-600:]}", flush=True
        )
        continue
      said = _kernels(done.stdout + done.stderr)
      for kernel, registers, spilled in assemble(folder) + said:
        bad = max(bad, int(spilled > 0))
        print(f"{name:16}{kernel:37}{registers:10}{spilled:15}", flush=True)
  return bad


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
