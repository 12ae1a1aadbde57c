"""Decoding of a table against recorded ids of the hub (tools/golden)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.ops import decoding

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "decoding" / "table.npz"
FILE = dict(np.load(GOLDEN))
TABLE = jnp.asarray(FILE["table"])


def names(kind):
  return sorted({k.split("/")[1] for k in FILE if k.startswith(f"{kind}/")})


def step(cache, tokens, slot):
  """Logits follow from two tokens: the one before is the cache."""
  before, steps = cache["before"], cache["steps"]
  last = tokens[:, -1]
  cache = dict(before=last[None], steps=steps.at[slot].add(1))
  return TABLE[before[0], last], cache


def start(prompt):
  before = prompt[:, -2] if prompt.shape[1] > 1 else 0 * prompt[:, 0]
  cache = dict(before=prompt[None, :, -1], steps=jnp.zeros(64, jnp.int32))
  return TABLE[before, prompt[:, -1]], cache


@functools.partial(jax.jit, static_argnames=("settings", "adjust"))
def decode(prompt, settings, adjust=None, rng=None):
  return decoding.decode(
    step,
    start(prompt),
    prompt,
    settings,
    rng=rng,
    adjust=adjust,
    batch_axis=dict(before=1, steps=0),
    fixed=dict(before=False, steps=True),
  )


def ended(ids, prompt, settings):
  """Returns rows of full length with padding after their end.

  The hub fills rows of beam search with the end where the id of padding is 0,
  which is false in Python.
  """
  out = np.full((len(ids), settings.length), settings.pad_id)
  for row, found in zip(out, ids, strict=True):
    ends = np.isin(found[prompt:], settings.eos_ids).nonzero()[0]
    stop = prompt + ends[0] + 1 if ends.size else len(found)
    row[:stop] = found[:stop]
  return out


@pytest.mark.parametrize("name", names("ids"))
def test_ids_are_those_of_the_hub(name):
  settings = decoding.Settings(**json.loads(str(FILE[f"ids/{name}/settings"])))
  prompt = FILE[f"ids/{name}/prompt"]
  got = decode(jnp.asarray(prompt), settings)
  want = ended(FILE[f"ids/{name}/ids"], prompt.shape[1], settings)
  np.testing.assert_array_equal(got, want)


def test_every_setting_changes_something():
  """Else its case would prove nothing."""
  prompt = jnp.asarray(FILE["ids/greedy/prompt"])
  for name, base in (
    ("minimum", "greedy"),
    ("minimum_new", "greedy"),
    ("two_ends", "greedy"),
    ("no_end", "greedy"),
    ("suppressed", "greedy"),
    ("no_repeat", "greedy"),
    ("beam", "greedy"),
    ("beam_first", "beam"),
    ("beam_long", "beam"),
    ("beam_short", "beam"),
    ("beam_minimum", "beam"),
  ):
    ids = []
    for case in (name, base):
      said = json.loads(str(FILE[f"ids/{case}/settings"]))
      found = np.asarray(decode(prompt, decoding.Settings(**said)))
      ids.append(np.pad(found, ((0, 0), (0, 24 - found.shape[1]))))
    assert (ids[0] != ids[1]).any(), name


@pytest.mark.parametrize("name", names("filter"))
def test_filters_are_those_of_the_hub(name):
  said = json.loads(str(FILE[f"filter/{name}/settings"]))
  settings = decoding.Settings(length=2, sample=True, **said)
  got = decoding.filtered(jnp.asarray(FILE["logits"]), settings)
  want = FILE[f"filter/{name}/logits"]
  np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_draws_follow_the_filtered_probabilities():
  settings = decoding.Settings(length=2, sample=True, temperature=2.0, top_k=5)
  prompt = jnp.full((20_000, 1), 4, jnp.int32)
  ids = decode(prompt, settings, rng=jax.random.key(0))
  found = np.bincount(np.asarray(ids[:, 1]), minlength=TABLE.shape[-1])
  want = jax.nn.softmax(decoding.filtered(TABLE[0, 4][None], settings))[0]
  assert (np.asarray(want) > 0).sum() == 5
  # Four standard deviations of a binomial.
  np.testing.assert_allclose(found / len(prompt), want, atol=4 * 0.5 / 141)
  again = decode(prompt, settings, rng=jax.random.key(0))
  np.testing.assert_array_equal(ids, again)
  assert (ids != decode(prompt, settings, rng=jax.random.key(1))).any()


def only_even(logits, ids, index):
  """Also reads what came before: at place 4, only what stands at 3."""
  odd = jnp.arange(logits.shape[-1]) % 2 == 1
  x = jnp.where(odd[None], -jnp.inf, logits)
  same = jnp.arange(logits.shape[-1])[None] == ids[:, 3, None]
  return jnp.where((index == 4) & ~same, -jnp.inf, x)


@pytest.mark.parametrize("beams", [1, 3])
def test_adjust_sees_ids_and_place(beams):
  prompt = jnp.asarray(FILE["ids/greedy/prompt"])
  settings = decoding.Settings(length=9, eos_ids=(0,), beams=beams)
  ids = np.asarray(decode(prompt, settings, adjust=only_even))
  assert not (ids[:, 2:] % 2).any()
  np.testing.assert_array_equal(ids[:, 3], ids[:, 4])
  assert (ids[:, 4] != ids[:, 5]).any()


def test_compiles_once_and_ends_early():
  """One compilation for all prompts; no more steps than the longest row."""
  settings = decoding.Settings(length=40, eos_ids=(1, 2, 3, 4))
  traces, taken = [], []

  @jax.jit
  def run(prompt):
    def counted(cache, tokens, slot):
      traces.append(1)
      jax.debug.callback(lambda s: taken.append(int(s)), slot)
      return step(cache, tokens, slot)

    return decoding.decode(counted, start(prompt), prompt, settings)

  prompts = [jnp.asarray(FILE[f"ids/{n}/prompt"]) for n in ("beam", "greedy")]
  found = []
  for prompt in prompts:
    taken.clear()
    ids = np.asarray(jax.block_until_ready(run(prompt)))
    jax.effects_barrier()
    longest = (ids != 0).any(0).nonzero()[0].max() + 1
    assert sorted(taken) == list(range(2, longest - 1))
    found.append(longest)
  assert len(traces) == 1
  assert max(found) < 40


def test_errors_name_the_field():
  with pytest.raises(errors.InputError, match="beams = 0"):
    decoding.Settings(4, beams=0)
  with pytest.raises(errors.InputError, match="early_stopping = 'now'"):
    decoding.Settings(4, early_stopping="now")
  with pytest.raises(errors.InputError, match="top_p = 0"):
    decoding.Settings(4, top_p=0.0)
  with pytest.raises(errors.InputError, match="sample = True"):
    decoding.Settings(4, sample=True, beams=2)
  prompt = jnp.ones((1, 4), jnp.int32)
  with pytest.raises(errors.InputError, match="length = 4"):
    decode(prompt, decoding.Settings(4))
  with pytest.raises(errors.InputError, match="needs rng"):
    decode(prompt, decoding.Settings(5, sample=True))
