import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors


@pytest.mark.slow
def test_without_the_last_row_it_is_a_cap_with_the_same_captions(recorded):
  def change(tensors):
    name = "params/decoder/EmbedTargets/embedding"
    tensors[name] = tensors[name][:-1].copy()

  def causal(inputs):
    del inputs["parallel"]

  loaded, out, want = recorded("captioner", tensors=change, inputs=causal)
  assert not loaded.model.masked and "mask" not in loaded.variables["params"]
  np.testing.assert_allclose(out[0][:3], want["0"][:3], atol=1e-4)
  # Negative control: the parallel rows are others.
  assert np.abs(out[0] - want["0"])[3:].max() > 1e-2
  with pytest.raises(errors.InputError, match="masked = False"):
    image, tokens = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 2), jnp.int32)
    loaded.model.apply(loaded.variables, image, tokens, jnp.array([True]))


@pytest.mark.parametrize("value", [None, 0, "9"])
def test_sines_need_a_length(recorded, value):
  def change(config):
    config["seq_len"] = value

  with pytest.raises(errors.InputError, match="seq_len"):
    recorded("captioner_scan", change)


@pytest.mark.parametrize(
  "name, shape, word",
  [
    ("decoder/EmbedTargets/embedding", (49, 20), "49 rows for 47 logits"),
    ("encoder/cls", (1, 1, 24), "class token"),
    ("encoder/head/kernel", (24, 5), "not expected"),
  ],
)
def test_what_no_captioner_has_is_named(recorded, name, shape, word):
  def change(tensors):
    tensors[f"params/{name}"] = np.zeros(shape, np.float32)

  with pytest.raises(errors.InputError, match=word):
    recorded("captioner", tensors=change)


def test_a_decoder_without_blocks_is_named(recorded):
  def change(tensors):
    for name in list(tensors):
      if "EncDecBlock0" in name:
        del tensors[name]

  with pytest.raises(errors.InputError, match="EncDecBlock0"):
    recorded("captioner", tensors=change)
