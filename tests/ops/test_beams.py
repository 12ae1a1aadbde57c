"""Beam search against a search of all sequences.

The ids of the hub are compared in test_decoding.py.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import beams

VOCAB, LENGTH, EOS = 3, 5, 0


def table(seed):
  x = np.random.default_rng(seed).normal(size=(VOCAB, VOCAB, VOCAB)) * 1.5
  return np.log(np.exp(x) / np.exp(x).sum(-1, keepdims=True))


def best(logp, first, penalty):
  """Returns the sequence whose score is the highest of all."""
  found = []
  for n in range(1, LENGTH):
    for tail in itertools.product(range(VOCAB), repeat=n):
      if EOS in tail[:-1] or (tail[-1] != EOS and n < LENGTH - 1):
        continue
      row = [first, *tail]
      score = sum(
        logp[row[i - 2] if i > 1 else first, row[i - 1], row[i]]
        for i in range(1, len(row))
      )
      found.append((score / n**penalty, row + [EOS] * (LENGTH - len(row))))
  return max(found)[1]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beams_enough_for_all_find_the_best(penalty):
  def run(logp, ids):
    def step(cache, tokens, slot):
      before, fixed = cache
      logits = fixed[jnp.arange(len(tokens)), before, tokens[:, 0]]
      return logits, (tokens[:, 0], fixed)

    first = ids[:, 0]
    start = logp[jnp.arange(len(ids)), first, first], (first, logp)
    return beams.search(
      step,
      start,
      ids,
      1,
      beams=VOCAB**LENGTH,
      length_penalty=penalty,
      early_stopping="never",
      eos_ids=(EOS,),
      adjust=lambda x, ids, index: x,
      batch_axis=0,
      fixed=(False, True),
    )

  logp = np.stack([table(seed) for seed in range(6)])
  first = np.array([1, 2, 1, 2, 1, 2])
  ids = np.full((6, LENGTH), EOS)
  ids[:, 0] = first
  got = jax.jit(run)(jnp.asarray(logp, jnp.float32), jnp.asarray(ids))
  want = [best(x, f, penalty) for x, f in zip(logp, first, strict=True)]
  np.testing.assert_array_equal(got, want)
  assert len({tuple(row) for row in want}) > 3
