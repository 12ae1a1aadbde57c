"""VQGAN: taming-transformers' checkpoints, and vqgan-jax's Flax files.

The two name modules alike, "encoder.down.0.block.0.conv1" and
"encoder/down_0/block_0/conv1"; PyTorch's kernels are OIHW, Flax's HWIO. All
sizes stand in the shapes. Taming's own files hold the discriminator and the
perceptual loss too, which are not read. With Gumbel quantisation (GumbelVQ) the
codebook is "quantize.embed", beside the logits of "quantize.proj".
"""

import re
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import image_tokens

# What taming's Encoder, Decoder and VQModel can and our model cannot.
_ONLY = dict(double_z=False, resamp_with_conv=True, give_pre_end=False)

# A convolution of one pixel as a matrix: [V D 1 1] -> [D V].
_POINT = rename.Op(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a VQGAN, or None for any other checkpoint."""
  names = checkpoint.tensors
  if "quantize.embed.weight" in names and "quant_conv.weight" in names:
    return _recipe(checkpoint, flax=False)
  if "quantize.embedding.weight" in names and "quant_conv.weight" in names:
    return _recipe(checkpoint, flax=False)
  if "quantize/embedding/embedding" in names and "quant_conv/kernel" in names:
    return _recipe(checkpoint, flax=True)
  return None


def _recipe(checkpoint: Checkpoint, *, flax: bool) -> Recipe:
  path = checkpoint.path
  sizes = _sizes(checkpoint, flax)
  config = _fields(checkpoint.config)
  image_tokens.check_is(path, config, _ONLY)
  levels = tuple(range(len(sizes["ch_mult"])))
  attention = sizes.pop("attention")
  image_tokens.check_agrees(path, config, sizes)
  if "attn_resolutions" in config and "resolution" in config:
    said = tuple(
      i
      for i in levels
      if config["resolution"] // 2**i in config["attn_resolutions"]
    )
    if said != attention:
      raise errors.InputError(
        f"weights path = {str(path)!r}: its config says attn_resolutions = "
        f"{config['attn_resolutions']} at resolution {config['resolution']}, "
        f"that is at levels {said}, but its tensors have attention at levels "
        f"{attention}; take the config that belongs to them."
      )
  multiples, blocks = sizes["ch_mult"], sizes["num_res_blocks"]
  gumbel = "quantize.embed.weight" in checkpoint.tensors
  if gumbel:
    image_tokens.need(path, checkpoint.shapes, "quantize.proj.weight")
    # Ids that are left out of the codes, as a file beside the weights.
    image_tokens.check_is(path, config, dict(remap=None))
  rules = _Rules(flax, gumbel)
  widths = [sizes["ch"] * n for n in multiples]
  rules.halves(widths, sizes["ch"], blocks, attention)
  return Recipe(
    table="vqgan",
    model=dict(
      name="vqgan",
      width=sizes["ch"],
      multiples=multiples,
      blocks=blocks,
      attention=attention,
      latent=sizes["z_channels"],
      codes=sizes["n_embed"],
      code_width=sizes["embed_dim"],
      **({"quantiser": "gumbel"} if gumbel else {}),
      channels=sizes["in_channels"],
      out_channels=sizes["out_ch"],
      dropout=config.get("dropout", 0.0),
    ),
    inputs={
      "image": (
        (1, 2 ** levels[-1], 2 ** levels[-1], sizes["in_channels"]),
        "float32",
      )
    },
    rules=rules.found,
    config=checkpoint.config,
    ignore=(r"^loss\.", r"^lpips\.", r"^colorize$"),
  )


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a config says: of vqgan-jax flat, of taming's yaml nested."""
  config = (config.get("model") or config) if "model" in config else config
  config = config.get("params") or config
  return {**config, **(config.get("ddconfig") or {})}


def _sizes(checkpoint: Checkpoint, flax: bool) -> dict[str, Any]:
  """Returns sizes by taming's names, and the levels with attention."""
  shapes = checkpoint.shapes

  def io(theirs: str) -> tuple[int, int]:
    """Returns channels in and out of a convolution."""
    name = _name(theirs, flax) + ("kernel" if flax else "weight")
    shape = image_tokens.need(checkpoint.path, shapes, name)
    return (shape[2], shape[3]) if flax else (shape[1], shape[0])

  def count(theirs: str) -> int:
    """Returns how many numbered modules there are: theirs.0, theirs.1, ..."""
    n = 0
    while any(s.startswith(_name(f"{theirs}.{n}", flax)) for s in shapes):
      n += 1
    return n

  channels, width = io("encoder.conv_in")
  levels = range(count("encoder.down"))
  embedding = (
    "quantize/embedding/embedding" if flax else "quantize.embedding.weight"
  )
  if embedding not in shapes:
    embedding = "quantize.embed.weight"
  codes, code_width = shapes[embedding]
  io("encoder.down.0.block.0.conv1")  # there is a level
  wide = [io(f"encoder.down.{i}.block.0.conv1")[1] for i in levels]
  for i, n in enumerate(wide):
    if n % width:
      raise errors.InputError(
        f"weights path = {str(checkpoint.path)!r}: encoder.down.{i} has {n} "
        f"channels, no multiple of the {width} of encoder.conv_in."
      )
  return dict(
    ch=width,
    in_channels=channels,
    ch_mult=tuple(n // width for n in wide),
    num_res_blocks=count("encoder.down.0.block"),
    z_channels=io("encoder.conv_out")[1],
    out_ch=io("decoder.conv_out")[1],
    n_embed=codes,
    embed_dim=code_width,
    attention=tuple(i for i in levels if count(f"encoder.down.{i}.attn")),
  )


def _name(theirs: str, flax: bool) -> str:
  """Returns a module's name with the separator after it.

  Flax's underscores stand for the dots before numbers.
  """
  if not flax:
    return f"{theirs}."
  return re.sub(r"\.(\d+)", r"_\1", theirs).replace(".", "/") + "/"


class _Rules:
  """Collects rules for one of the two layouts, as `found`."""

  def __init__(self, flax: bool, gumbel: bool):
    self.flax, self.gumbel = flax, gumbel
    self.found: list[Rule] = []

  def halves(
    self,
    widths: list[int],
    first: int,
    blocks: int,
    attention: tuple[int, ...],
  ) -> None:
    """Adds the rules of the whole model.

    Args:
      widths: channels of each level.
      first: channels after the first convolution.
      blocks: of each level of the encoder.
      attention: levels that have it.
    """
    last = len(widths) - 1
    for half in ("encoder", "decoder"):
      for name in ("conv_in", "conv_out"):
        self.conv(f"{half}/{name}", f"{half}.{name}")
      self.norm(f"{half}/norm_out", f"{half}.norm_out")
      self.block(f"{half}/mid_block_1", f"{half}.mid.block_1", False)
      self.attention(f"{half}/mid_attn_1", f"{half}.mid.attn_1", widths[-1])
      self.block(f"{half}/mid_block_2", f"{half}.mid.block_2", False)
    for i, width in enumerate(widths):
      above = widths[min(i + 1, last)]  # the level that the decoder left
      for half, side, given, number in (
        ("encoder", "down", widths[i - 1] if i else first, blocks),
        ("decoder", "up", above, blocks + 1),
      ):
        for j in range(number):
          skip = j == 0 and given != width
          ours, theirs = f"{half}/{side}_{i}", f"{half}.{side}.{i}"
          self.block(f"{ours}_block_{j}", f"{theirs}.block.{j}", skip)
          if i in attention:
            self.attention(f"{ours}_attn_{j}", f"{theirs}.attn.{j}", width)
      if i < last:
        theirs = f"encoder.down.{i}.downsample.conv"
        self.conv(f"encoder/down_{i}_down", theirs)
      if i > 0:
        self.conv(f"decoder/up_{i}_up", f"decoder.up.{i}.upsample.conv")
    self.conv("to_code", "quant_conv")
    self.conv("from_code", "post_quant_conv")
    theirs = "embedding" if self.flax else "weight"
    name = _name("quantize.embedding", self.flax)
    if self.gumbel:
      name, logits = "quantize.embed.", "quantize.proj."
      self.found += image_tokens.conv(
        "codebook/proj", logits, "weight", "bias", _POINT
      )
    self.found.append(Rule("codebook/table", f"{name}{theirs}"))

  def conv(self, ours: str, theirs: str) -> None:
    """Adds the rules of a convolution."""
    name, op = _name(theirs, self.flax), rename.CONV2D
    if self.flax:
      op = rename.SAME
    kernel = "kernel" if self.flax else "weight"
    self.found += image_tokens.conv(ours, name, kernel, "bias", op)

  def norm(self, ours: str, theirs: str) -> None:
    """Adds the rules of a norm."""
    name = _name(theirs, self.flax)
    scale = "scale" if self.flax else "weight"
    self.found.append(Rule(f"{ours}/scale", f"{name}{scale}"))
    self.found.append(Rule(f"{ours}/bias", f"{name}bias"))

  def block(self, ours: str, theirs: str, skip: bool) -> None:
    """Adds the rules of a residual block."""
    for i in (1, 2):
      self.norm(f"{ours}/norm{i}", f"{theirs}.norm{i}")
      self.conv(f"{ours}/conv{i}", f"{theirs}.conv{i}")
    if skip:
      self.conv(f"{ours}/skip", f"{theirs}.nin_shortcut")

  def attention(self, ours: str, theirs: str, width: int) -> None:
    """Adds the rules of an attention block: 1x1 convolutions, one head."""
    self.norm(f"{ours}/norm", f"{theirs}.norm")
    square = (width, width)
    head = rename.to_heads(1)
    if self.flax:
      to_head = rename.reshape((width, 1, width), (1, 1, *square))
      from_head = rename.reshape((1, *square), (1, 1, *square))
    else:
      matrix = rename.reshape(square, (*square, 1, 1))
      to_head = rename.chain(matrix, head)
      from_head = rename.chain(matrix, rename.from_heads(1))
    kernel = "kernel" if self.flax else "weight"
    for leaf, x, op, bias in (
      ("query", "q", to_head, head),
      ("key", "k", to_head, head),
      ("value", "v", to_head, head),
      ("out", "proj_out", from_head, rename.SAME),
    ):
      name, leaf = _name(f"{theirs}.{x}", self.flax), f"{ours}/attention/{leaf}"
      self.found.append(Rule(f"{leaf}/kernel", f"{name}{kernel}", op))
      self.found.append(Rule(f"{leaf}/bias", f"{name}bias", bias))
