"""CLIP with a ViT in OpenAI's layout and open_clip's.

OpenAI's package is not on PyPI, and open_clip asks for torchvision. So the
towers are those of transformers, renamed and packed as OpenAI's. Matrices are
stored in half precision, as in OpenAI's files.
"""

import make_golden
import numpy as np
from make_golden import redraw, save

VOCAB, LENGTH = 50, 9
TEXT = np.array(
  [
    [48, 3, 7, 9, 11, 49, 0, 0, 0],
    [48, 5, 2, 6, 49, 0, 0, 0, 0],
    [48, 12, 30, 2, 8, 4, 21, 13, 49],
  ],
  np.int32,
)


def make() -> None:
  """Records the cases."""
  _vit_openai()
  _vit_open_clip()


def images(shape: tuple, seed: int) -> np.ndarray:
  """Draws images in quarters, which pack well."""
  return np.round(make_golden.images(shape, seed) * 4) / 4


def clip(image: dict, text: dict, act: str, embed: int, seed: int):
  from transformers import CLIPConfig, CLIPModel

  config = CLIPConfig(
    vision_config=dict(num_hidden_layers=1, hidden_act=act, **image),
    text_config=dict(
      vocab_size=VOCAB,
      max_position_embeddings=LENGTH,
      hidden_act=act,
      eos_token_id=2,  # read at the greatest id
      pad_token_id=0,
      bos_token_id=48,
      **text,
    ),
    projection_dim=embed,
  )
  return redraw(CLIPModel(config), seed=seed)


def halve(model) -> None:
  """Rounds matrices to few bits of half precision, which pack well."""
  import torch

  for value in model.parameters():
    if value.ndim > 1:
      bits = value.data.half().view(torch.int16)
      value.data = (bits & ~0x7F).view(torch.float16).float()


def tensors_of(model) -> dict:
  """Returns the tensors of a CLIPModel by OpenAI's names."""
  state, out = model.state_dict(), {}
  for name, value in state.items():
    if "position_ids" in name or ("_proj." in name and "self_attn" in name):
      continue
    out[_renamed(name)] = value
  for tower, theirs in (("vision_model", "visual."), ("text_model", "")):
    depth = sum(
      n.startswith(f"{tower}.encoder") and n.endswith("layer_norm1.weight")
      for n in state
    )
    for n in range(depth):
      a = f"{tower}.encoder.layers.{n}.self_attn."
      block = f"{theirs}transformer.resblocks.{n}.attn."
      for leaf in ("weight", "bias"):
        qkv = [state[f"{a}{x}_proj.{leaf}"] for x in "qkv"]
        out[f"{block}in_proj_{leaf}"] = _cat(qkv)
        out[f"{block}out_proj.{leaf}"] = state[f"{a}out_proj.{leaf}"]
  for name in ("visual.proj", "text_projection"):
    out[name] = out[name].T.contiguous()
  return out


def _cat(parts):
  import torch

  return torch.cat(parts)


def _renamed(name: str) -> str:
  for theirs, ours in (
    ("vision_model.", "visual."),
    ("text_model.", ""),
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.patch_embedding", "conv1"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("embeddings.token_embedding", "token_embedding"),
    ("encoder.layers", "transformer.resblocks"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("pre_layrnorm", "ln_pre"),
    ("post_layernorm", "ln_post"),
    ("final_layer_norm", "ln_final"),
    ("visual_projection.weight", "visual.proj"),
    ("text_projection.weight", "text_projection"),
  ):
    name = name.replace(theirs, ours)
  return name


def as_released(state: dict, pixels: int) -> dict:
  """Halves matrices and adds the numbers that OpenAI's files hold."""
  norms = (".ln_", "visual.ln_", "ln_final", ".bn", "downsample.1", "embedding")
  out = {}
  for name, value in state.items():
    half = value.ndim > 1 and not any(x in name for x in norms)
    out[name] = value.half() if half else value
  numbers = dict(
    input_resolution=pixels, context_length=LENGTH, vocab_size=VOCAB
  )
  return out | {k: np.array(v) for k, v in numbers.items()}


def embed(model, image: np.ndarray, resnet=None) -> dict:
  """Returns the reference's outputs."""
  import torch

  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  ids = torch.from_numpy(TEXT.astype(np.int64))
  with torch.no_grad():
    text = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    if resnet is None:
      found = model.visual_projection(
        model.vision_model(pixel_values=pixels).pooler_output
      )
    else:
      found = resnet(pixels)
    scale = model.logit_scale.exp()
  outputs = [x / x.norm(dim=-1, keepdim=True) for x in (found, text)]
  return {"0": outputs[0], "1": outputs[1], "2/0": scale}


def _vit_openai() -> None:
  """Heads of 64 channels and quick GELU, as no file says."""
  model = clip(
    dict(
      hidden_size=128,
      intermediate_size=20,
      num_attention_heads=2,
      image_size=15,
      patch_size=5,
    ),
    dict(
      hidden_size=64,
      intermediate_size=24,
      num_attention_heads=1,
      num_hidden_layers=2,
    ),
    "quick_gelu",
    20,
    seed=31,
  )
  halve(model)
  image = images((3, 15, 15, 3), seed=31)
  state = as_released(tensors_of(model), 15)
  save(
    "openai_clip_vit",
    {},
    state,
    {"image": image, "text": TEXT},
    embed(model, image),
  )


def _vit_open_clip() -> None:
  """The text tower under `text.`, GELU, an image with a rest of pixels."""
  model = clip(
    dict(
      hidden_size=24,
      intermediate_size=36,
      num_attention_heads=3,
      image_size=26,
      patch_size=8,
    ),
    dict(
      hidden_size=20,
      intermediate_size=44,
      num_attention_heads=5,
      num_hidden_layers=2,
    ),
    "gelu",
    12,
    seed=32,
  )
  config = dict(
    embed_dim=12,
    custom_text=True,
    vision_cfg=dict(
      image_size=26,
      layers=1,
      width=24,
      head_width=8,
      patch_size=8,
      mlp_ratio=1.5,
    ),
    text_cfg=dict(
      context_length=LENGTH,
      vocab_size=VOCAB,
      width=20,
      heads=5,
      layers=2,
      mlp_ratio=2.2,
    ),
  )
  image = images((3, 26, 26, 3), seed=32)
  state = {
    k if k.startswith("visual.") or k == "logit_scale" else f"text.{k}": v
    for k, v in tensors_of(model).items()
  }
  save(
    "open_clip_vit",
    dict(model_cfg=config, preprocess_cfg=dict(mean=[0.5] * 3)),
    state,
    {"image": image, "text": TEXT},
    embed(model, image),
  )
