"""SigLIP on emoji: the main job, minutes on two CPU cores.

Paper: Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023
  (arXiv 2303.15343), its method on a data set that ships with mmjax. The
  paper's own models (WebLI, batch 32k) cannot be reproduced by an outsider.
Command: mmjax train --config experiments/emoji/siglip.py --workdir runs/emoji
  Words: smoke, fold=0..4|dev, locale=de or en+de, image=resnet|vit.
  All folds: python tools/five_folds.py --workdir runs/folds
Hardware: 2 CPU cores, at most 4 minutes.
Expected: held-out concepts (200 per fold), name + tags, mean of five folds:
  text->image R@5 at least 0.30 (measured: 0.304 +- 0.040); chance 0.025.
Reproduction: B (public data, short training; the data is in the wheel).
"""

import ml_collections

from experiments import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Returns the config of the main job."""
  words = common.parse_arg(
    arg, smoke=False, fold="0", locale="en", image="resnet"
  )
  source = dict(
    name="emoji",
    fold=common.fold(words.fold),
    locale=common.locale(words.locale),
    holdout="concept",
  )
  length = 48  # whole captions, but for one in twenty

  c = ml_collections.ConfigDict()
  c.seed = 0
  c.steps = 700
  c.batch_size = 128
  c.mesh = dict(data=-1, fsdp=1, tensor=1)
  c.dtype = "float32"

  c.tokenizers = dict(
    emoji=dict(
      kind="sentencepiece",
      vocab_size=3500,  # most words whole
      model_type="unigram",
      source=dict(source, split="train"),
    )
  )
  c.data = dict(
    source=dict(source, split="train"),
    pp=(
      "decode|affine(rotate=15, scale=(0.75, 1.1), shift=0.1)|flip|resize(32)|"
      f"sample_tags(0.7)|tokenize('emoji', key='text', length={length})|keep('image', 'text')"
    ),
    workers=0,
  )

  width, heads = 128, 4
  # 5,000 images teach a ViT little of what convolutions know from the start.
  towers = dict(
    resnet=dict(
      name="resnet",
      block="basic",
      depths=(1, 1, 1),
      stem=32,
      stem_kernel=3,  # the CIFAR form: 32 pixels leave 16 after the stem
      stem_pool=False,
    ),
    vit=dict(
      name="vit",
      width=width,
      depth=2,
      heads=heads,
      mlp=4 * width,
      patch=8,
      stem="conv",
      pool="gap",
      scan=False,  # two blocks: a loop over them costs a third of the step
    ),
  )
  image = common.choose("image", words.image, towers)
  c.task = dict(
    name="contrastive",
    loss="sigmoid",
    loss_impl="dense",
    microbatches=1,
    model=dict(
      name="dual_encoder",
      embed_dim=width,
      temperature_init=10.0,
      bias_init=-5.0,  # about -ln(batch), as the paper's -10 is of 32k
      image=image,
      text=dict(
        name="text_encoder",
        vocab_size=None,  # that of the tokenizer
        width=width,
        depth=0,  # 1,600 captions teach words, not grammar
        heads=heads,
        mlp=4 * width,
        length=length,
        pool="mean",
        dropout=0.1,
      ),
    ),
  )

  c.optimizer = dict(
    name="adamw",
    lr=2e-3,
    schedule=dict(name="cosine", warmup=40),
    weight_decay=0.1,
    clip=1.0,
    b1=0.9,
    b2=0.98,
    ema_decay=0.99,
  )

  c.evals = dict(
    concepts=dict(
      name="retrieval",
      data=dict(source, split="test"),
      image_pp="decode|resize(32)|keep('image')",
      text_pp=f"tokenize('emoji', key='text', length={length})|keep('text')",
      batch_size=200,
      ks=(1, 5, 10),
      average_over="vendor",
      every=175,
    ),
    groups=dict(
      name="zero_shot",
      data=dict(source, split="test"),
      image_pp="decode|resize(32)|keep('image')",
      text_pp=f"tokenize('emoji', key='text', length={length})|keep('text')",
      label="group",  # nine: animals-nature, flags, food-drink, ...
      templates=("{}", "{}: symbol", "{}: picture"),
      batch_size=200,
      ks=(1, 5),
    ),
    pixel_neighbour=dict(
      name="pixel_neighbour",
      train=dict(source, split="train"),
      data=dict(source, split="test"),
      protocol="concept",
      image_pp="decode|resize(32)",
      ks=(1, 5, 10),
      average_over="vendor",
    ),
  )
  c.log_every = 20
  c.checkpoint = dict(every=500, keep=1)
  c.nan = "stop"

  return _smoke(c) if words.smoke else c


def _smoke(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Shrinks everything: two steps, in seconds."""
  c.steps = 2
  c.batch_size = 16
  c.log_every = 1
  c.checkpoint = dict(every=1, keep=2)
  c.optimizer.schedule.warmup = 1
  c.evals.concepts.every = 2
  image, text = c.task.model.image, c.task.model.text
  text.update(width=32, depth=1, heads=2, mlp=64)
  if image.name == "vit":
    image.update(width=32, depth=1, heads=2, mlp=64)
  else:
    image.update(depths=(1,), stem=16)
  c.task.model.embed_dim = 32
  return c
