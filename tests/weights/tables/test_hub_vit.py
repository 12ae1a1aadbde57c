import pytest

from mmjax import errors
from mmjax.weights.tables import hub_vit


def test_prefixes_and_heads_are_found():
  shapes = {"vit.norm.weight": (4,), "classifier.weight": (3, 4)}
  assert hub_vit.prefix(shapes, "vit") == "vit."
  assert hub_vit.prefix({"vitriol": ()}, "vit") == ""
  assert hub_vit.classes(shapes, "classifier") == 3
  assert hub_vit.classes(shapes, "head") is None


def test_embeddings_keep_tokens_and_patches_apart():
  rules = {
    rule.ours: rule
    for rule in hub_vit.embeddings("e.", (3, 2), 4, ("cls", "distilled"))
  }
  assert rules["distilled"].theirs == "e.distillation_token"
  assert rules["posemb/extra"].piece == (0, 2, 1)
  assert rules["posemb/grid"].piece == (2, 8, 1)


def test_bare_projections_have_no_rule():
  names = [r.ours for r in hub_vit.blocks("b.{n}.", 2, qkv_bias=False)]
  with_bias = [r.ours for r in hub_vit.blocks("b.{n}.", 2)]
  gone = {f"encoder/blocks/attention/{x}/bias" for x in ("query", "key")}
  gone.add("encoder/blocks/attention/value/bias")
  assert set(with_bias) - set(names) == gone


def test_what_cannot_be_followed_is_named():
  hub_vit.check(dict(patch_size=16, pooling="mean"), pooling="mean")
  with pytest.raises(errors.InputError, match=r"patch_size = \[16, 8\]"):
    hub_vit.check(dict(patch_size=[16, 8]))
  with pytest.raises(errors.InputError, match=r"pooling = 'max'.*'mean'"):
    hub_vit.check(dict(patch_size=16, pooling="max"), pooling="mean")
