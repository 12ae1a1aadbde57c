"""Published sizes; the parts of one recorded model; what decoding remembers."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmjax import errors, weights
from mmjax.models import whisper

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "whisper.npz"
COUNTS = {
  "tiny": 37_760_640,
  "tiny.en": 37_760_640 - 384,
  "base": 72_593_920,
  "small": 241_734_912,
  "medium": 763_857_920,
  "large": 1_543_304_960,
  "large-v3": 1_543_490_560,
  "large-v3-turbo": 808_878_080,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """Returns the recorded model, its variables and the arrays of its file."""
  folder = tmp_path_factory.mktemp("whisper")
  with np.load(GOLDEN) as file:
    found = {name: file[name] for name in file.files}
  tensors = {
    k.removeprefix("tensor/"): v
    for k, v in found.items()
    if k.startswith("tensor/")
  }
  (folder / "config.json").write_text(str(found["config"]))
  save_file(tensors, folder / "model.safetensors")
  loaded = weights.load(folder)
  return loaded.model, loaded.variables, found


@pytest.mark.parametrize("variant", COUNTS)
def test_published_sizes(variant):
  model = whisper.build(variant)
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0),
      jnp.zeros((1, 4, model.mels)),
      jnp.zeros((1, 2), jnp.int32),
    )
  )
  count = sum(x.size for x in jax.tree.leaves(nn.unbox(shapes)))
  assert count == COUNTS[variant]


def test_what_is_written_follows_from_the_prompt_alone(tiny):
  """A cache gives the logits of the whole text, wherever it is cut."""
  model, variables, found = tiny
  audio, tokens = found["input/audio"], found["input/decoder_tokens"]
  want, _ = jax.jit(model.apply)(variables, audio, tokens)
  start = functools.partial(model.apply, slots=12, method="start")
  logits, cache = jax.jit(start)(variables, tokens[:, :3], audio=audio)
  np.testing.assert_allclose(logits, want[:, 2], atol=1e-4)
  step = jax.jit(lambda *a: model.apply(variables, *a, method="step"))
  logits, cache = step(cache, tokens[:, 3:7], 3)
  np.testing.assert_allclose(logits, want[:, 6], atol=1e-4)
  for slot in range(7, 11):
    logits, cache = step(cache, tokens[:, slot : slot + 1], slot)
    np.testing.assert_allclose(logits, want[:, slot], atol=1e-4)
  assert np.abs(want[:, 2] - want[:, 6]).max() > 0.1


def test_the_checkpoint_says_how_to_transcribe(tiny):
  model, variables, found = tiny
  assert model.prompt == (50,) and model.eos_ids == (45,)
  assert model.suppress == (3, 9, 26) and model.begin_suppress == (5, 45)
  audio = found["generate/greedy/audio"]
  prompt, want = (found[f"generate/greedy/{k}"] for k in ("prompt", "ids"))
  got = whisper.transcribe(model, variables, audio, prompt=prompt)
  np.testing.assert_array_equal(got, want)
  one = whisper.transcribe(model, variables, audio[:1], prompt=prompt[0])
  np.testing.assert_array_equal(one[0], want[0])


@pytest.mark.slow
def test_the_language_is_heard(tiny):
  model, variables, found = tiny
  model = model.clone(prompt=(50, -1), languages=(7, 11, 30))
  audio = found["generate/greedy/audio"]
  got = np.asarray(whisper.transcribe(model, variables, audio))
  start = np.full((len(audio), 1), 50, np.int32)
  logits, _ = jax.jit(model.apply)(variables, audio, start)
  likeliest = np.argmax(np.asarray(logits)[:, 0, [7, 11, 30]], -1)
  np.testing.assert_array_equal(got[:, 1], np.array([7, 11, 30])[likeliest])
  # Row by row as if it had been told.
  told = np.stack([start[:, 0], got[:, 1]], 1)
  want = whisper.transcribe(model, variables, audio, prompt=told)
  np.testing.assert_array_equal(got, want)


def test_the_encoder_alone_is_the_same(tiny):
  model, variables, found = tiny
  audio = found["input/audio"]
  encode = jax.jit(functools.partial(model.apply, method="encode"))
  want = encode(variables, audio)
  np.testing.assert_allclose(want, found["output/1/encoded"], atol=1e-4)
  alone = whisper.build(
    part="encoder",
    mels=7,
    width=20,
    depth=3,
    heads=2,
    mlp=18,
    audio_length=9,
  )
  own = {"params": variables["params"]["encoder"]}
  np.testing.assert_array_equal(jax.jit(alone.apply)(own, audio), want)


def test_what_is_wrong_is_named(tiny):
  model, variables, found = tiny
  audio, build = found["input/audio"], whisper.build
  for call, told in (
    (lambda: build("huge"), "'huge'.*large"),
    (lambda: build("tiny", part="half"), "part = 'half'"),
    (lambda: build(width=8, mels=4), "vocab_size, depth, heads, mlp"),
    (lambda: build("tiny", act="swish"), "swish"),
    (
      lambda: whisper.transcribe(model, variables, audio, length=15),
      "length = 15.*14",
    ),
    (
      lambda: whisper.transcribe(model, variables, audio, lenght=5),
      "lenght.*length",
    ),
    (
      lambda: whisper.transcribe(model, variables, audio, prompt=[50, -1]),
      "no languages",
    ),
    (
      lambda: whisper.transcribe(model.clone(prompt=()), variables, audio),
      "prompt = None",
    ),
  ):
    with pytest.raises(errors.InputError, match=told):
      call()
