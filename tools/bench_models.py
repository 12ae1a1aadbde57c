"""Times models on the CPU: mmjax beside PyTorch, eager and compiled.

  pip install torch==2.13.0 && pip install transformers==5.23.0
  python tools/bench_models.py                      # all cases, three rounds
  python tools/bench_models.py vit gpt2 --rounds 5

Forward passes of ViT-B/16, BERT-base (128 tokens) and Whisper tiny (30 s of
sound, 32 tokens) at batch 8, and greedy decoding of 128 tokens by GPT-2 small
after a prompt of 16, in float32. PyTorch's model is drawn at random and saved
as the hub saves it; mmjax loads that, so that both have the same weights, and
both must give the same outputs: it is the same computation that is timed.

Each contestant has a process of its own and they take turns, in rounds; the
figures are medians over the rounds of the best of its runs. The ratio is to the
better of PyTorch's two: below 1 mmjax is faster.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BATCH, PROMPT, NEW = 8, 16, 128
CASES = ("vit", "bert", "whisper", "gpt2")
CONTESTANTS = ("mmjax", "eager", "compile")
TOLERANCE = 1e-3  # of the largest output


def reference(case: str) -> tuple[Any, dict[str, np.ndarray]]:
  """Returns transformers' model and its inputs, by its names for them."""
  hub: Any = importlib.import_module("transformers")

  rng = np.random.default_rng(0)

  def ids(vocab: int, rows: int, length: int) -> np.ndarray:
    return rng.integers(5, vocab, (rows, length))

  if case == "vit":
    model = hub.ViTModel(hub.ViTConfig(), add_pooling_layer=False)
    pixels = rng.normal(size=(BATCH, 3, 224, 224)).astype(np.float32)
    return model, {"pixel_values": pixels}
  if case == "bert":
    model = hub.BertModel(hub.BertConfig())
    return model, {"input_ids": ids(30522, BATCH, 128)}
  if case == "whisper":
    config = hub.WhisperConfig(d_model=384, encoder_layers=4, decoder_layers=4)
    config.encoder_attention_heads = config.decoder_attention_heads = 6
    config.encoder_ffn_dim = config.decoder_ffn_dim = 1536
    model = hub.WhisperForConditionalGeneration(config)
    features = rng.normal(size=(BATCH, 80, 3000)).astype(np.float32)
    return model, {
      "input_features": features,
      "decoder_input_ids": ids(50000, BATCH, 32),
    }
  model = hub.GPT2LMHeadModel(hub.GPT2Config())
  return model, {"input_ids": ids(50257, 1, PROMPT)}


def make(case: str, folder: pathlib.Path) -> None:
  """Saves the case: a checkpoint and its inputs."""
  torch: Any = importlib.import_module("torch")

  torch.manual_seed(0)
  model, inputs = reference(case)
  model.save_pretrained(folder)
  np.savez(folder / "inputs.npz", allow_pickle=False, **inputs)


def ours(case: str, folder: pathlib.Path) -> Callable[[], np.ndarray]:
  """Returns what runs the case by mmjax."""
  import jax
  import jax.numpy as jnp

  from mmjax import weights
  from mmjax.layers.apart import apart
  from mmjax.layers.generate import generate

  loaded = weights.load(folder)
  inputs = dict(np.load(folder / "inputs.npz"))
  if case == "gpt2":
    prompt = jnp.asarray(inputs["input_ids"], jnp.int32)
    length = PROMPT + NEW
    return lambda: np.asarray(
      generate(loaded.model, loaded.variables, prompt, length=length)
    )
  given = {
    "vit": lambda: {"image": inputs["pixel_values"].transpose(0, 2, 3, 1)},
    "bert": lambda: {"tokens": inputs["input_ids"].astype(np.int32)},
    "whisper": lambda: {
      "audio": inputs["input_features"].transpose(0, 2, 1),
      "decoder_tokens": inputs["decoder_input_ids"].astype(np.int32),
    },
  }[case]()
  pick = {
    "vit": lambda out: out[1]["tokens"],
    "bert": lambda out: out[0],
    "whisper": lambda out: out[0],
  }[case]
  given = jax.device_put(given)
  variables = apart(loaded.model, loaded.variables, **given)
  call = jax.jit(lambda v, x: pick(loaded.model.apply(v, **x)))
  return lambda: np.asarray(call(variables, given))


def theirs(
  case: str, folder: pathlib.Path, compiled: bool
) -> Callable[[], np.ndarray]:
  """Returns what runs the case by PyTorch."""
  torch: Any = importlib.import_module("torch")
  hub: Any = importlib.import_module("transformers")

  name = json.loads((folder / "config.json").read_text())["architectures"][0]
  model = getattr(hub, name).from_pretrained(folder).eval()
  inputs = {
    k: torch.from_numpy(v) for k, v in np.load(folder / "inputs.npz").items()
  }
  if case == "gpt2":
    settings: dict[str, Any] = dict(
      max_new_tokens=NEW,
      min_new_tokens=NEW,
      do_sample=False,
      pad_token_id=0,
      attention_mask=torch.ones_like(inputs["input_ids"]),
    )
    if compiled:
      # The cache of one shape: else every length would be compiled.
      settings["cache_implementation"] = "static"
      model.forward = torch.compile(model.forward)

    def decode():
      with torch.inference_mode():
        return model.generate(**inputs, **settings).numpy()

    return decode
  call = torch.compile(model) if compiled else model

  def forward():
    with torch.inference_mode():
      out = call(**inputs)
    return (out.logits if case == "whisper" else out[0]).numpy()

  return forward


def contest(case: str, name: str, folder: pathlib.Path, runs: int) -> None:
  """Times one contestant; prints a line of JSON and saves its output."""
  if name == "mmjax":
    run = ours(case, folder)
  else:
    run = theirs(case, folder, compiled=name == "compile")
  began = time.perf_counter()
  out = run()
  first = time.perf_counter() - began
  run()
  taken = []
  for _ in range(runs):
    began = time.perf_counter()
    run()
    taken.append(time.perf_counter() - began)
  np.save(folder / f"{name}.npy", out)
  print(json.dumps({"first": first, "best": min(taken)}))


def spawn(*args: str) -> tuple[dict[str, float] | None, str]:
  """Runs this file in a process of its own."""
  found = subprocess.run(
    [sys.executable, __file__, *args],
    capture_output=True,
    text=True,
    check=False,
  )
  lines = found.stdout.strip().splitlines()
  if found.returncode:
    # JAX ends its tracebacks with advice; the error stands above.
    error = [x for x in found.stderr.splitlines() if re.match(r"[\w.]+:", x)]
    return None, error[-1] if error else f"exit {found.returncode}"
  return (json.loads(lines[-1]) if lines else {}), ""


def measure(case: str, rounds: int, runs: int, names: list[str]) -> dict:
  """Times a case; returns seconds by contestant and the ratio.

  Raises:
    SystemExit: the contestants' outputs differ.
  """
  with tempfile.TemporaryDirectory() as path:
    folder = pathlib.Path(path)
    _, error = spawn("--make", case, str(folder))
    if error:
      sys.exit(f"{case}: the reference cannot be made: {error}")
    seconds: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for _ in range(rounds):
      for name in names:
        if name in failed:
          continue
        found, error = spawn(
          "--contest", name, case, str(folder), "--runs", str(runs)
        )
        if found is None:
          failed[name] = error
          continue
        seconds.setdefault(name, []).append(found["best"])
    want = np.load(folder / "eager.npy")
    for name in seconds:
      got = np.load(folder / f"{name}.npy")
      worst = np.abs(got.astype(np.float64) - want).max()
      if got.shape != want.shape or worst > TOLERANCE * np.abs(want).max():
        sys.exit(f"{case}: {name} differs from eager by {worst}")
  found = {k: statistics.median(v) for k, v in seconds.items()}
  peers = [found[k] for k in ("eager", "compile") if k in found]
  ratio = found["mmjax"] / min(peers) if "mmjax" in found else float("nan")
  return dict(seconds=found, failed=failed, ratio=ratio)


def main() -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("cases", nargs="*", default=CASES)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--runs", type=int, default=5, help="in each round")
  parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
  parser.add_argument("--contest", nargs=3, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.make:
    return make(args.make[0], pathlib.Path(args.make[1]))
  if args.contest:
    name, case, folder = args.contest
    return contest(case, name, pathlib.Path(folder), args.runs)
  if unknown := set(args.cases) - set(CASES):
    parser.error(f"cases: {sorted(unknown)} unknown; known: {', '.join(CASES)}")
  versions = ", ".join(
    f"{p} {importlib.metadata.version(p)}"
    for p in ("jax", "torch", "transformers")
  )
  print(f"{platform.machine()}, {os.cpu_count()} cores, {versions}")
  print(f"{'case':10}" + "".join(f"{n:>12}" for n in CONTESTANTS) + "   ratio")
  for case in args.cases:
    found = measure(case, args.rounds, args.runs, list(CONTESTANTS))
    cells = "".join(
      f"{found['seconds'][n] * 1e3:9.1f} ms"
      if n in found["seconds"]
      else f"{'fails':>12}"
      for n in CONTESTANTS
    )
    print(f"{case:10}{cells}   {found['ratio']:.3f}", flush=True)
    for name, error in found["failed"].items():
      print(f"{'':10}{name}: {error}")
  return None


if __name__ == "__main__":
  main()
