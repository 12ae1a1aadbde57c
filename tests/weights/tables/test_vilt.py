import numpy as np
import pytest

from mmjax import errors


def close(out, want):
  for path, value in want.items():
    got = out[0] if path == "0" else out[1][path.split("/")[1]]
    scale = np.abs(value).max()
    np.testing.assert_allclose(got, value, atol=1e-4 * scale, err_msg=path)


def test_released_names_of_the_bias_and_copies_of_tied_weights(recorded):
  def change(tensors):
    bias = tensors.pop("mlm_score.decoder.bias")
    tensors["mlm_score.bias"] = bias
    table = tensors["vilt.embeddings.text_embeddings.word_embeddings.weight"]
    tensors["mlm_score.decoder.weight"] = table.copy()
    ids = "vilt.embeddings.text_embeddings.position_ids"
    tensors[ids] = np.arange(11)[None]

  close(*recorded("vilt_masked_words", tensors=change)[1:])


def test_without_prefix_and_head(recorded):
  def change(tensors):
    for name in list(tensors):
      tensor = tensors.pop(name)
      if name.startswith("vilt."):
        tensors[name.removeprefix("vilt.")] = tensor

  _, out, want = recorded("vilt_matched", tensors=change)
  assert out[1].keys() == {"tokens", "patches"}
  close(out, {k: v for k, v in want.items() if k != "1/matched"})


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("qkv_bias", False, r"query\.bias"),
    ("hidden_act", "xielu", "hidden_act = 'xielu'"),
    ("image_size", [20, 24], r"image_size = \[20, 24\]"),
    ("image_size", 24, "position_embeddings"),
    ("max_image_length", 27, "max_patches = 27"),
    ("modality_type_vocab_size", 3, r"embeddings\.token_type_embeddings"),
  ],
)
def test_what_does_not_fit_is_named(recorded, field, value, message):
  with pytest.raises(errors.InputError, match=message):
    recorded("vilt_masked_words", lambda config: config.update({field: value}))


@pytest.mark.parametrize(
  "field, value", [("layer_norm_eps", 1e-2), ("num_attention_heads", 4)]
)
def test_the_config_decides(recorded, field, value):
  _, out, want = recorded(
    "vilt_masked_words", lambda config: config.update({field: value})
  )
  assert np.abs(out[0] - want["0"]).max() > 1e-3
