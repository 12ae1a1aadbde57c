import jax.numpy as jnp
import numpy as np

from mmjax.layers import seq2seq
from mmjax.ops import masks

TOKENS = jnp.array([[5, 2, 7, 2, 0], [8, 3, 0, 0, 0]])


def test_a_text_moves_behind_its_start():
  np.testing.assert_array_equal(
    seq2seq.shifted(TOKENS, 9), [[9, 5, 2, 7, 2], [9, 8, 3, 0, 0]]
  )


def test_the_last_end_counts():
  np.testing.assert_array_equal(seq2seq.last_end(TOKENS, 2), [3, -1])


def test_keys_are_where_the_mask_is_set():
  assert seq2seq.keys(None) is None
  seen = seq2seq.keys(jnp.array([[2, 0], [1, 1]]))
  assert isinstance(seen, masks.Keys)
  np.testing.assert_array_equal(seen.valid, [[True, False], [True, True]])
