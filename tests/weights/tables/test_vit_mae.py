"""ViT-MAE's table: both names of its decoder's blocks, and what it refuses."""

import jax
import numpy as np
import pytest

from mmjax import errors


def test_blocks_of_the_decoder_by_their_released_names(recorded):
  loaded, out, _ = recorded("vit_mae")

  def released(tensors):
    for name in list(tensors):
      new = name.replace("decoder_encoder.layer.", "decoder_layers.")
      tensors[new] = tensors.pop(name)
    assert "decoder.decoder_layers.2.output.dense.bias" in tensors

  old, again, _ = recorded("vit_mae", tensors=released)
  jax.tree.map(np.testing.assert_array_equal, old.variables, loaded.variables)
  np.testing.assert_array_equal(out[0], again[0])
  # It goes out with the names that it came with.
  names = [{rule.theirs for rule in x.recipe.rules} for x in (old, loaded)]
  assert any(n.startswith("decoder.decoder_layers.") for n in names[0])
  assert not any(n.startswith("decoder.decoder_layers.") for n in names[1])


@pytest.mark.slow
def test_the_mean_error_and_its_normalisation(recorded):
  _, out, want = recorded("vit_mae")
  np.testing.assert_allclose(out[1]["loss"], want["1/loss"], rtol=1e-5)

  def plain(config):
    config["norm_pix_loss"] = False

  _, out, _ = recorded("vit_mae", config=plain)
  assert abs(out[1]["loss"] / want["1/loss"] - 1) > 1e-3
  _, out, want = recorded("vit_mae_other_size")
  np.testing.assert_allclose(out[1]["loss"], want["1/loss"], rtol=1e-5)


def test_positions_of_the_decoder_are_one_line(recorded):
  """The reference's own way: the same weights as a grid would differ."""
  loaded, out, want = recorded("vit_mae_other_size")
  assert loaded.variables["params"]["decoder"]["positions"].shape == (37, 12)
  assert out[0].shape == want["0"].shape == (2, 28, 16)


def test_a_missing_block_is_named_and_a_missing_field_is_the_default(recorded):
  def cut(tensors):
    del tensors["decoder.decoder_encoder.layer.1.output.dense.bias"]

  with pytest.raises(errors.InputError, match=r"layer\.1\.output.* missing"):
    recorded("vit_mae", tensors=cut)

  def forget(config):
    del config["decoder_hidden_size"]

  # The reference's default, which is not what these tensors are.
  with pytest.raises(errors.InputError, match=r"decoder_embed.*another shape"):
    recorded("vit_mae", config=forget)


def forget_mask(config):
  del config["model_args"]["mask_ratio"]


def test_its_authors_files_say_nothing_of_the_mask(recorded):
  """Their constructor's values stand: 0.75, and pixels as they are."""
  loaded, out, want = recorded("mae_official")
  assert loaded.recipe.table == "vit_mae"
  np.testing.assert_allclose(out[1]["loss"], want["1/loss"], rtol=1e-5)
  assert loaded.model.normalised_targets and loaded.model.mask_ratio == 0.6
  loaded, out, _ = recorded("mae_official", config=forget_mask)
  assert loaded.model.mask_ratio == 0.75
  assert out[1]["tokens"].shape[1] == 1 + 25 // 4


@pytest.mark.parametrize(
  "said, words",
  [
    (dict(num_heads=None), r"2 blocks of width 16 .*\"num_heads\": \.\.\."),
    (dict(decoder_num_heads=0), "3 blocks of width 12 .*decoder_num_heads"),
    (dict(decoder_num_heads=5), "decoder_num_heads = 5 does not divide"),
    (dict(img_size=224), "img_size = 224: the tensors have 20"),
    (dict(mlp_dim=3), "model_args.*'mlp_dim'"),
  ],
)
def test_what_its_authors_files_cannot_be_is_named(recorded, said, words):
  with pytest.raises(errors.InputError, match=words):
    recorded("mae_official", config=lambda c: c["model_args"].update(said))


def test_positions_of_its_authors_are_square(recorded):
  def cut(tensors):
    tensors["pos_embed"] = tensors["pos_embed"][:, :-1]

  with pytest.raises(errors.InputError, match=r"24 positions.* no square"):
    recorded("mae_official", tensors=cut)
