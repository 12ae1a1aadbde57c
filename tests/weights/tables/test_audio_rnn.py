"""PyTorch's recurrent layers to 1e-5, and what is refused by name."""

import numpy as np
import pytest

from mmjax import errors
from mmjax.weights import files
from mmjax.weights.tables import audio_rnn

CASES = ("audio_rnn_lstm", "audio_rnn_gru", "audio_rnn_gru_both")


@pytest.mark.parametrize("name", CASES)
def test_equals_packed_sequences(recorded, name):
  _, out, want = recorded(name)
  for path, x in want.items():
    got = out[1][path[2:]] if "/" in path else out[int(path)]
    assert got.shape == x.shape
    np.testing.assert_allclose(got, x, atol=1e-5 * np.abs(x).max())


def test_the_model_is_told_by_the_tensors(recorded):
  loaded = recorded("audio_rnn_lstm")[0]
  assert loaded.recipe.model == dict(
    name="audio_rnn",
    cell="lstm",
    width=11,
    depth=3,
    bidirectional=True,
    num_classes=5,
  )
  first, blocks = (
    loaded.variables["params"]["encoder"][k] for k in ("first", "blocks")
  )
  assert first["backward"]["input"]["kernel"].shape == (7, 4, 11)
  assert blocks["backward"]["input"]["kernel"].shape == (2, 22, 4, 11)
  loaded = recorded("audio_rnn_gru")[0]
  assert loaded.recipe.model["stack"] == 2
  assert loaded.recipe.inputs == {"audio": ((1, 4, 5), "float32")}


def test_no_config_is_needed(recorded):
  def change(config):
    config.clear()

  loaded, out, want = recorded("audio_rnn_gru_both", change)
  assert "pool" not in loaded.recipe.model
  np.testing.assert_allclose(out[1]["tokens"], want["1/tokens"], atol=1e-5)


@pytest.mark.parametrize("name", ["bias_ih_l1", "bias_hh_l0", "weight_hh_l1"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_order_of_the_gates_matters(recorded, name, cell):
  if cell == "lstm":
    name = f"rnn.{name}"

  def change(tensors):
    gates = 4 if cell == "lstm" else 3
    tensors[name] = np.roll(tensors[name], len(tensors[name]) // gates, 0)

  _, out, want = recorded(f"audio_rnn_{cell}", tensors=change)
  assert np.abs(out[0] - want["0"]).max() > 1e-3


@pytest.mark.parametrize(
  "name, value, told",
  [
    ("model_type", "gru", "model_type = 'lstm'"),
    ("input_size", 8, "input_size = 7"),
    ("hidden_size", 44, "hidden_size = 11"),
    ("num_layers", 2, "num_layers = 3"),
    ("bidirectional", False, "bidirectional = True"),
    ("proj_size", 4, "proj_size = 0"),
    ("stack", 2, "width of its input is 7"),
    ("pool", "max", "pool = 'max'"),
    ("nonlinearity", "relu", "nonlinearity"),
  ],
)
def test_a_config_that_says_something_else(recorded, name, value, told):
  with pytest.raises(errors.InputError, match=told):
    recorded("audio_rnn_lstm", lambda config: config.update({name: value}))


def checkpoint(tmp_path, shapes, config=None):
  tensors = {
    name: files.Tensor(shape, np.dtype("float32"), lambda: np.zeros(0))
    for name, shape in shapes.items()
  }
  return files.Checkpoint(tmp_path, tensors, config or {})


LSTM = {
  "weight_ih_l0": (12, 5),
  "weight_hh_l0": (12, 3),
  "bias_ih_l0": (12,),
  "bias_hh_l0": (12,),
}


def test_what_is_no_lstm_or_gru_is_named(tmp_path):
  for change, told in (
    ({"weight_hr_l0": (2, 3)}, "proj_size"),
    ({"weight_hh_l0": (3, 3), "weight_ih_l0": (3, 5)}, r"\(3, 3\).*no GRU"),
  ):
    with pytest.raises(errors.InputError, match=told):
      audio_rnn.build(checkpoint(tmp_path, {**LSTM, **change}))
  bare = {k: v for k, v in LSTM.items() if "bias" not in k}
  with pytest.raises(errors.InputError, match="bias=False"):
    audio_rnn.build(checkpoint(tmp_path, bare))


def test_anothers_checkpoint_is_left_to_others(tmp_path):
  build = audio_rnn.build
  assert build(checkpoint(tmp_path, LSTM)).model["cell"] == "lstm"
  assert build(checkpoint(tmp_path, {"a.weight": (3,)})) is None
  assert build(checkpoint(tmp_path, LSTM | {"conv.weight": (3,)})) is None
  two = LSTM | {f"b.{k}": v for k, v in LSTM.items()}
  assert build(checkpoint(tmp_path, two)) is None
  assert build(checkpoint(tmp_path, LSTM, {"model_type": "vits"})) is None


def test_a_missing_layer_is_named(recorded):
  def change(tensors):
    del tensors["rnn.bias_hh_l1_reverse"]

  with pytest.raises(errors.InputError, match=r"rnn\.bias_hh_l1_reverse"):
    recorded("audio_rnn_lstm", tensors=change)
