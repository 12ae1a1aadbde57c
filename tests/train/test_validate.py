"""Every mistake in a config: field, value, fix; before any long work."""

import copy

import pytest

from mmjax import errors
from mmjax.train import validate

GOOD = dict(
  steps=10,
  batch_size=16,
  tokenizers={"t": dict(kind="bytes")},
  data=dict(
    source=dict(name="emoji"),
    pp="decode|tokenize('t', key='name', length=8)|keep('image', 'name')",
  ),
  task=dict(
    name="contrastive",
    model=dict(
      name="dual_encoder",
      image=dict(name="vit", width=16, depth=1, heads=2, mlp=32, patch=8),
      text=dict(name="text_encoder", vocab_size=None, width=16),
    ),
  ),
  optimizer=dict(lr=1e-3),
  evals={
    "r": dict(
      name="retrieval",
      data=dict(name="emoji"),
      image_pp="decode",
      text_pp="lower",
      every="1e3 examples",
    )
  },
)


def changed(**fields):
  """Returns GOOD with fields replaced; a path is joined by two underlines."""
  c = copy.deepcopy(GOOD)
  for path, value in fields.items():
    *parents, last = path.split("__")
    node = c
    for key in parents:
      node = node.setdefault(key, {})
    if value is ...:
      del node[last]
    else:
      node[last] = value
  return c


def test_tokenizers_of_the_hub_are_not_read_here():
  spec = "tokenize_as_trained('t', key='name', length=8)|keep('name')"
  c = changed(tokenizers__t=dict(kind="hub", path="/none"), data__pp=spec)
  validate.check_specs(validate.resolve(c))
  c = changed(data__pp=spec)
  with pytest.raises(errors.InputError, match="not of kind 'hub'"):
    validate.check_specs(validate.resolve(c))


def test_a_good_config_passes_and_is_completed():
  c = validate.resolve(GOOD)
  validate.check_names(c)
  assert set(c) == set(validate.FIELDS)
  assert c["checkpoint"] == {"every": 1000, "keep": 1} and c["nan"] == "stop"
  assert validate.resolve(c) == c


@pytest.mark.parametrize(
  "fields, words",
  [
    (dict(batchsize=3), ["config = 'batchsize'", "'batch_size'"]),
    (dict(steps=...), ["config.steps is missing"]),
    (dict(steps=0), ["config.steps = 0", "at least 1"]),
    (dict(steps="9"), ["config.steps = '9'"]),
    (dict(batch_size=True), ["config.batch_size = True"]),
    (dict(seed=1.5), ["config.seed = 1.5"]),
    (dict(mesh=[8]), ["config.mesh = [8]", "dict"]),
    (dict(dtype="float16"), ["config.dtype", "bfloat16"]),
    (dict(nan="stopp"), ["config.nan", "'stop'"]),
    (dict(log_every=0), ["config.log_every = 0"]),
    (dict(checkpoint__evry=3), ["config.checkpoint", "'every'"]),
    (dict(checkpoint__every="3 stepz"), ["'stepz'", "'steps'"]),
    (dict(checkpoint__keep=0), ["config.checkpoint.keep = 0"]),
    (dict(optimizer__lr=...), ["config.optimizer.lr is missing"]),
    (dict(optimizer__name="adamm"), ["optimizer.name", "'adam"]),
    (dict(task__name="contrastve"), ["config.task.name", "'contrastive'"]),
    (dict(task__los="x"), ["tasks.contrastive keyword", "'loss'"]),
    (dict(task__model__name="dual"), ["config.task.model.name"]),
    (dict(task__model__image__name="vitt"),
     ["config.task.model.image.name", "'vit'"]),
    (dict(task__model__image__dept=1), ["models.vit keyword", "'depth'"]),
    (dict(data__sourc={}), ["config.data", "'source'"]),
    (dict(data__pp=...), ["config.data.pp is missing"]),
    (dict(data__workers=-1), ["config.data.workers = -1", "at least 0"]),
    (dict(data__workers=1.5), ["config.data.workers = 1.5"]),
    (dict(data__workers=True), ["config.data.workers = True"]),
    (dict(data=dict(mix={}, workers=None)), ["config.data.workers = None"]),
    (dict(data__source__name="emojis"),
     ["config.data.source.name", "'emoji'"]),
    (dict(data__source__fald=0), ["data.sources.emoji keyword", "'fold'"]),
    (dict(data__pp="decodee"), ["'decodee'", "'decode'"]),
    (dict(data__pp="tokenize('u')"), ["'u'"]),
    (dict(data=dict(mix={"a": dict(source=dict(name="emoji"))})),
     ["config.data.mix.a.pp is missing"]),
    (dict(tokenizers__t__kind="byte"), ["config.tokenizers.t.kind", "'bytes'"]),
    (dict(tokenizers__t__sise=3), ["config.tokenizers.t"]),
    (dict(tokenizers__t__source=dict(name="emojy")),
     ["config.tokenizers.t.source.name", "'emoji'"]),
    (dict(evals__r__name="retrievel"), ["config.evals.r.name", "'retrieval'"]),
    (dict(evals__r__kss=1), ["evals.retrieval keyword", "'ks'"]),
    (dict(evals__r__every=-1), ["config.evals.r.every = -1"]),
    (dict(evals__r__data__name="emojo"), ["config.evals.r.data.name"]),
    (dict(evals__r__image_pp="decod"), ["'decod'", "'decode'"]),
  ],
)  # fmt: skip
def test_mistakes_are_named(fields, words):
  with pytest.raises(errors.InputError) as e:
    validate.check_names(validate.resolve(changed(**fields)))
  for word in words:
    assert word in str(e.value), str(e.value)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize(
  "size, shards, processes, micro, words",
  [
    (12, 8, 1, 1, ["batch_size = 12", "multiple of 8", "8 or 16"]),
    (3, 8, 1, 1, ["use 8,"]),
    (24, 8, 1, 2, ["2 microbatches", "16 or 32"]),
    (16, 2, 4, 1, ["4 processes", "mesh"]),
  ],
)
def test_a_batch_that_does_not_split(size, shards, processes, micro, words):
  c = validate.resolve(changed(batch_size=size, task__microbatches=micro))
  with pytest.raises(errors.InputError) as e:
    validate.check_batch(c, shards, processes)
  for word in words:
    assert word in str(e.value)


def test_a_batch_that_does():
  validate.check_batch(validate.resolve(changed(batch_size=32)), 8, 4)


class Tokenizer:
  def __init__(self, size):
    self.vocab_size = size


def test_vocabularies_come_from_tokenizers():
  spec = {"model": {"text": {"vocab_size": None}, "x": {"vocab_size": 70}}}
  filled = validate.fill_vocab(spec, {"t": Tokenizer(50)})
  assert filled["model"]["text"]["vocab_size"] == 50
  assert filled["model"]["x"]["vocab_size"] == 70
  two = {"a": Tokenizer(5), "b": Tokenizer(6)}
  assert validate.fill_vocab({"vocab_size": "b"}, two) == {"vocab_size": 6}
  for value, tokenizers, word in (
    (None, two, "2 tokenizers"),
    ("c", two, "'c'"),
    (49, {"t": Tokenizer(50)}, "has 50 ids"),
  ):
    with pytest.raises(errors.InputError, match=word):
      validate.fill_vocab({"m": {"vocab_size": value}}, tokenizers)
