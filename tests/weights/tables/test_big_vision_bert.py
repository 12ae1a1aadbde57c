import pathlib

import numpy as np
import pytest

from mmjax import errors
from mmjax.weights import files, loading
from mmjax.weights.tables import big_vision_bert as bert

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
TXT = "params/txt/"
EMBED = f"{TXT}BertEncoder_0/embedder/embedders_"
LAYER = f"{TXT}BertEncoder_0/encoder_block/layer_sequence/layers_"


def checkpoint(width, config=None):
  """Returns what tells the sizes of a BERT of two layers."""
  shapes = {
    f"{EMBED}token_ids/embedding": (50, width),
    f"{EMBED}position_ids/embedding": (512, width),
    f"{EMBED}segment_ids/embedding": (2, width),
  }
  for n in range(2):
    shapes[f"{LAYER}{n}/mlp_block/mlp/dense_layer/kernel"] = (width, 40)
  tensors = {
    name: files.Tensor(shape, np.dtype("float32"), lambda: 1 / 0)
    for name, shape in shapes.items()
  }
  return files.Checkpoint(pathlib.Path("x.npz"), tensors, config or {})


def test_sizes_are_those_of_the_shapes_and_heads_of_64():
  found = checkpoint(192)
  assert bert.marked(found, TXT) and not bert.marked(found, "txt/")
  model, _ = bert.text(found, TXT)
  assert (model["width"], model["depth"], model["mlp"]) == (192, 2, 40)
  assert (model["heads"], model["vocab_size"], model["length"]) == (3, 50, 512)
  assert model["act"] == "gelu" and model["pool"] == "cls"


def test_matrices_are_cut_into_heads_and_back(rng):
  _, rules = bert.text(checkpoint(128), TXT)
  by_name = {rule.ours: rule for rule in rules}
  matrix = rng.normal(size=(128, 128))
  for name, shape in (("query", (128, 2, 64)), ("out", (2, 64, 128))):
    op = by_name[f"encoder/blocks/attention/{name}/kernel"].op
    assert op.ours(matrix).shape == shape
    np.testing.assert_array_equal(op.theirs(op.ours(matrix)), matrix)
  # The second head reads the second 64 columns.
  query = by_name["encoder/blocks/attention/query/kernel"].op.ours(matrix)
  np.testing.assert_array_equal(query[:, 1], matrix[:, 64:])


@pytest.mark.parametrize(
  "config, heads", [({}, "heads of 64"), ({"text_heads": 7}, "7 heads")]
)
def test_a_width_that_heads_do_not_share_is_named(config, heads):
  with pytest.raises(errors.InputError, match=f"width 100.* {heads}"):
    bert.text(checkpoint(100, config), TXT)
  model, _ = bert.text(checkpoint(100, {"text_heads": 5}), TXT)
  assert model["heads"] == 5


@pytest.mark.parametrize("name", ["big_vision_lit_bert", "lit_published"])
def test_lits_texts_are_short_and_its_published_image_has_old_names(name):
  with np.load(GOLDEN / f"{name}.npz") as case:
    tensors = {
      k.removeprefix("tensor/"): files.Tensor(v.shape, v.dtype, lambda: 1 / 0)
      for k, v in case.items()
      if k.startswith("tensor/")
    }
  table = next(n for n in tensors if "position_ids" in n)
  width = tensors[table].shape[1]
  tensors[table] = files.Tensor((512, width), np.float32, lambda: 1 / 0)
  config = {"text_heads": 4}
  recipe = loading.recognise(
    files.Checkpoint(pathlib.Path("x.npz"), tensors, config)
  )
  assert recipe.texts == {"text": 16} and recipe.inputs["text"][0] == (1, 16)
  image = recipe.model["image"]
  assert image["pool"] == "tok"
  assert image["token_posemb"] == (name == "lit_published")
