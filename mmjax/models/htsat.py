"""HTS-AT: shifted windows over a folded spectrogram, alone or of four parts.

"HTS-AT: A hierarchical token-semantic audio transformer for sound
classification and detection", Chen et al. 2022; as CLAP's audio encoder in
"Large-scale contrastive language-audio pretraining with feature fusion and
keyword-to-caption augmentation", Wu et al. 2023. Running statistics are the
collection "batch_stats".
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import interpolate
from mmjax.layers import pool as pooling
from mmjax.layers.convolution import batch_norm
from mmjax.layers.gated_fusion import Fusion
from mmjax.layers.mlp import activation
from mmjax.layers.norm import layer_norm
from mmjax.layers.window import Merge, WindowStage
from mmjax.parallel import rules

VARIANTS: dict[str, dict[str, Any]] = {
  "tiny": dict(width=96, depths=(2, 2, 6, 2), heads=(4, 8, 16, 32)),
  "base": dict(width=128, depths=(2, 2, 12, 2), heads=(4, 8, 16, 32)),
}
EPSILON = 1e-5  # of the norms outside of blocks
PARTS = 4  # spectrograms of a sound that are fused: the whole, and three parts

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  width=8,
  depths=(2, 1),
  heads=(2, 4),
  bins=4,
  side=16,
  patch=2,
  window=4,
  fused=True,
)
TINY_INPUTS = dict(audio=((PARTS, 50, 4), "float32"), is_longer=((), "int32"))


class HTSAT(nn.Module):
  """Audio encoder; see `build` for the attributes."""

  stem: int
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  mlp_ratio: float
  bins: int
  side: int
  patch: int
  stride: int
  window: int
  fused: bool = False
  reduction: int = 4
  patch_norm: bool = True
  qkv_bias: bool = True
  act: str = "gelu_exact"
  epsilon: float = EPSILON
  dropout: float = 0.0
  drop_path: float = 0.0
  momentum: float = 0.9
  scan: bool | None = None
  dtype: Any = jnp.float32

  @property
  def width(self) -> int:
    """Returns D of the features."""
    return self.stem * 2 ** (len(self.depths) - 1)

  @nn.compact
  def __call__(
    self,
    audio: jax.Array,
    is_longer: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes sounds.

    Args:
      audio: float [B A F], log-mel frames as `data/audio_ops.clap_mel` gives
        them; fused [B 4 A F]. Fewer frames than side * (side / F) are
        stretched to so many.
      is_longer: bool or int [B] or [B 1], fused only: where it is 0 the three
        parts are not read.
      train: normalises by the batch, and moves the running statistics: apply
        with mutable=["batch_stats"]; dropout on.

    Returns:
      Features [B D], and {"tokens": [B T D]} whose mean they are.

    Raises:
      InputError: another number of mels or parts, more frames than fit, or no
        is_longer where it is needed.
    """
    self._check(audio, is_longer)
    norm: dict[str, Any] = dict(train=train, momentum=self.momentum)
    # Of decibels: in the computation's dtype they would lose their digits.
    x = batch_norm(name="mel_norm", **norm)(audio.astype(jnp.float32))
    x = self._folded(x if self.fused else x[:, None])
    x = rules.constrain(x, "batch", None, None, None)
    if is_longer is None:
      x = self._embed(x[:, 0], "embedding", 1)
    else:
      x = self._fused(x, is_longer, norm)
    if self.patch_norm:
      x = self._norm("embedding_norm")(x)
    x = rules.constrain(x, "batch", None, None, "embed")
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    last, total = len(self.depths) - 1, sum(self.depths)
    rates = [self.drop_path * i / max(total - 1, 1) for i in range(total)]
    for i, (depth, heads) in enumerate(
      zip(self.depths, self.heads, strict=True)
    ):
      block = dict(
        heads=heads,
        mlp=int(self.mlp_ratio * x.shape[-1]),
        biases="qkvo" if self.qkv_bias else "o",
        act=self.act,
        epsilon=self.epsilon,
        dropout=self.dropout,
        dtype=self.dtype,
      )
      x = WindowStage(
        depth,
        self.window,
        drop_path=tuple(rates[:depth]),
        scan=self.scan,
        block=tuple(block.items()),
        name=f"stage{i}",
      )(x, not train)
      del rates[:depth]
      if i < last:
        x = Merge(EPSILON, self.dtype, name=f"merge{i}")(x)
    x = self._norm("norm")(x).reshape(x.shape[0], -1, self.width)
    x = rules.constrain(x, "batch", "length", "embed")
    return pooling.mean(x), {"tokens": x}

  def _check(self, audio: jax.Array, is_longer: jax.Array | None) -> None:
    want = (PARTS,) if self.fused else ()
    found = audio.shape[1:-2]
    if audio.ndim < 3 or found != want or audio.shape[-1] != self.bins:
      parts = f"{PARTS} " if self.fused else ""
      raise errors.InputError(
        f"audio of shape {audio.shape}: this model takes [B {parts}frames "
        f"{self.bins}]; prepare it with clap_mel({self.bins}, "
        f"truncation='{'fusion' if self.fused else 'rand_trunc'}')."
      )
    frames = self.side * (self.side // self.bins)
    if audio.shape[-2] > frames:
      raise errors.InputError(
        f"audio of {audio.shape[-2]} frames: at most {frames} fit; cut it."
      )
    if self.fused != (is_longer is not None):
      raise errors.InputError(
        f"is_longer is {'not ' if self.fused else ''}given, fused = "
        f"{self.fused}: clap_mel gives both or none; pass on what it gives."
      )

  def _folded(self, x: jax.Array) -> jax.Array:
    """Lays spectrograms [B C A F] out as images [B C side side].

    Frames are stretched to side * r, r = side // F, mels to side / r, and cut
    into r pieces of frames; from top to bottom each piece has its mels, from
    left to right its frames.
    """
    B, C, frames, bins = x.shape
    times = self.side // bins
    wanted, rows = self.side * times, self.side // times
    if frames < wanted:
      stretch = interpolate.weights(frames, wanted, "bicubic_corners")
      x = jnp.einsum("na,bcaf->bcnf", stretch, x, precision="highest")
    if bins < rows:
      stretch = interpolate.weights(bins, rows, "bicubic_corners")
      x = jnp.einsum("nf,bcaf->bcan", stretch, x, precision="highest")
    x = x.reshape(B, C, times, self.side, rows).swapaxes(3, 4)
    return x.reshape(B, C, self.side, self.side)

  def _embed(self, x: jax.Array, name: str, wide: int) -> jax.Array:
    """Maps an image [B Y X] to patches [B Y' X' D], `wide` times as wide."""
    ends = (self.patch - self.stride) // 2
    x = nn.Conv(
      self.stem,
      (self.patch, wide * self.patch),
      (self.stride, wide * self.stride),
      ends,
      dtype=self.dtype,
      kernel_init=rules.with_axes(
        nn.initializers.lecun_normal(),
        ("kernel", "kernel", "channels", "embed"),
      ),
      bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
      name=name,
    )(x[..., None])
    return rules.constrain(x, "batch", None, None, "embed")

  def _fused(
    self, x: jax.Array, is_longer: jax.Array, norm: dict[str, Any]
  ) -> jax.Array:
    """Embeds images [B 4 Y X]: the whole, and where longer also the parts."""
    B, _, Y, X = x.shape
    whole = self._embed(x[:, 0], "embedding", 1)
    parts = x[:, 1:].reshape(B * (PARTS - 1), Y, X)
    parts = self._embed(parts, "part_embedding", 3)
    # Side by side they are as wide as the whole, or nearly.
    _, rows, columns, D = parts.shape
    parts = parts.reshape(B, PARTS - 1, rows, columns, D).swapaxes(1, 2)
    parts = parts.reshape(B, rows, (PARTS - 1) * columns, D)
    lack = max(whole.shape[2] - parts.shape[2], 0)
    parts = jnp.pad(parts, ((0, 0), (0, 0), (0, lack), (0, 0)))
    parts = parts[:, :, : whole.shape[2]]
    longer = is_longer.reshape(B, 1, 1, 1) != 0
    both = Fusion(self.reduction, self.dtype, name="fusion")(
      whole, parts, longer, norm
    )
    return jnp.where(longer, both, whole)

  def _norm(self, name: str) -> nn.Module:
    return layer_norm(epsilon=EPSILON, dtype=self.dtype, name=name)


def build(
  variant: str | None = None,
  *,
  width: int | None = None,
  depths: Sequence[int] | None = None,
  heads: Sequence[int] | None = None,
  mlp_ratio: float = 4.0,
  bins: int = 64,
  side: int = 256,
  patch: int = 4,
  stride: int | None = None,
  window: int = 8,
  fused: bool = False,
  reduction: int = 4,
  patch_norm: bool = True,
  qkv_bias: bool = True,
  act: str = "gelu_exact",
  epsilon: float = EPSILON,
  dropout: float = 0.0,
  drop_path: float = 0.0,
  momentum: float = 0.9,
  scan: bool | None = None,
  dtype: str = "float32",
) -> HTSAT:
  """Builds an HTS-AT.

  Args:
    variant: a size of `VARIANTS`, or None. What is given beside it goes
      before it.
    width: of the first stage; each further one is twice as wide.
    depths: blocks of each stage. heads: of each stage.
    mlp_ratio: hidden units of the MLPs, times the width.
    bins: F, mels; the side is a multiple of side // F.
    side: of the square that the spectrogram is folded to.
    patch: side of a patch. stride: from patch to patch; None is the patch.
    window: side of a window, in tokens.
    fused: a sound is four spectrograms, of which three may not be read.
    reduction: of the channels within the fusion.
    patch_norm: a norm after the patches.
    qkv_bias: query, key and value have biases.
    act: of the MLPs. epsilon: of the norms in blocks.
    dropout: rate. drop_path: rate of stochastic depth of the last block.
    momentum: how much of the running statistics stays, each step.
    scan: whether to loop over a stage's blocks, see `layers.loop`.
    dtype: of the computation; parameters and statistics are float32.

  Raises:
    InputError: an unknown name, or sizes that do not go together.
  """
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.htsat variant", variant, VARIANTS)
    known = VARIANTS[variant]
    width = known["width"] if width is None else width
    depths = known["depths"] if depths is None else depths
    heads = known["heads"] if heads is None else heads
  if width is None or depths is None or heads is None:
    raise errors.InputError(
      "models.htsat: width, depths and heads must be given, or a variant such "
      "as 'tiny'."
    )
  activation(act)
  stride = stride or patch
  for wrong, why in (
    (
      not depths or min(depths) < 1 or len(heads) != len(depths),
      f"depths = {list(depths)}, heads = {list(heads)}: give each stage at "
      "least 1 block, and its heads.",
    ),
    (
      bins > side or side % (side // bins),
      f"bins = {bins}, side = {side}: the side must be a multiple of side // "
      "bins, so that pieces of frames fill the square.",
    ),
    (
      side < stride or (side // stride) % 2 ** (len(depths) - 1),
      f"side = {side}: {len(depths)} stages halve it, after steps of {stride} "
      f"pixels; take a multiple of {stride * 2 ** (len(depths) - 1)}.",
    ),
    (
      patch < stride
      or (side + (patch - stride) // 2 * 2 - patch) // stride
      != side // stride - 1,
      f"patch = {patch}, stride = {stride}, side = {side}: a row must hold "
      "side // stride patches; take one larger by an even number.",
    ),
    (
      fused and width < reduction,
      f"reduction = {reduction} leaves no channel of width = {width}.",
    ),
  ):
    if wrong:
      raise errors.InputError(f"models.htsat {why}")
  return HTSAT(
    width,
    tuple(depths),
    tuple(heads),
    mlp_ratio,
    bins,
    side,
    patch,
    stride,
    window,
    fused=fused,
    reduction=reduction,
    patch_norm=patch_norm,
    qkv_bias=qkv_bias,
    act=act,
    epsilon=epsilon,
    dropout=dropout,
    drop_path=drop_path,
    momentum=momentum,
    scan=scan,
    dtype=jnp.dtype(dtype),
  )
