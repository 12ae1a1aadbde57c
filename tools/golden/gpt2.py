"""GPT-2 of the hub: ragged prompts padded on the left, greedy and beam ids.

And classes of a text, by layers whose scores fall with their number.

What comes out at padding differs from one back end of the reference to the
next, and is not recorded (NaN).
"""

import numpy as np
from make_golden import hub_settings, redraw, save_hub

VOCAB, EOS, PAD = 50, 36, 0


def make() -> None:
  """Records the cases."""
  import torch
  from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
  )

  config = GPT2Config(
    vocab_size=VOCAB,
    n_positions=20,
    n_embd=20,
    n_layer=3,
    n_head=5,
    n_inner=36,
    bos_token_id=EOS,
    eos_token_id=EOS,
    activation_function="gelu_new",
  )
  model = sharp(redraw(GPT2LMHeadModel(config), seed=11))
  save_causal("gpt2", model, seed=11)

  # No prefix and no head of its own; exact GELU, scores that are not scaled.
  config = GPT2Config(
    vocab_size=VOCAB,
    n_positions=12,
    n_embd=16,
    n_layer=2,
    n_head=2,
    activation_function="gelu",
    scale_attn_weights=False,
    layer_norm_epsilon=1e-3,
  )
  bare = redraw(GPT2Model(config), seed=12)
  whole = GPT2LMHeadModel(config).eval()
  whole.transformer.load_state_dict(bare.state_dict())
  tokens, mask = ragged(seed=12)
  with torch.no_grad():
    logits = forward(whole, tokens, mask)
  save_hub("gpt2_bare", bare, {"tokens": tokens, "mask": mask}, {".": logits})

  config = GPT2Config(
    vocab_size=VOCAB,
    n_positions=12,
    n_embd=18,
    n_layer=3,
    n_head=3,
    n_inner=20,
    scale_attn_by_inverse_layer_idx=True,
    reorder_and_upcast_attn=True,
    tie_word_embeddings=False,
    pad_token_id=PAD,
    num_labels=5,
  )
  model = sharp(redraw(GPT2ForSequenceClassification(config), seed=13))
  with torch.no_grad():
    seen = torch.from_numpy(mask.astype(np.int64))
    logits = model(
      input_ids=torch.from_numpy(tokens.astype(np.int64)),
      attention_mask=seen,
      position_ids=(seen.cumsum(-1) - 1).clamp(min=0),
    ).logits
  save_hub(
    "gpt2_classes", model, {"tokens": tokens, "mask": mask}, {".": logits}
  )


def sharp(model, branches: float = 4.0, embedding: float = 2.0):
  """Makes ids follow from the whole text: branches count, logits are unlike."""
  import torch

  ends = (
    "c_proj.weight",
    "out_proj.weight",
    "o_proj.weight",
    "down_proj.weight",
  )
  with torch.no_grad():
    for name, value in model.named_parameters():
      if ".ln_" in name:  # `redraw` takes them for anything
        value.mul_(0.3 if name.endswith("bias") else 1.0)
        value.add_(1.0 if name.endswith("weight") else 0.0)
      if name.endswith(ends):
        value.mul_(branches)
    model.get_input_embeddings().weight.mul_(embedding)
  return model


def ragged(seed: int, length: int = 9) -> tuple[np.ndarray, np.ndarray]:
  """Draws tokens [5 T] and a mask of padding on the left; the first has none.

  The last row is padded on the right too.
  """
  rng = np.random.default_rng(seed)
  tokens = rng.integers(8, VOCAB, (5, length)).astype(np.int32)
  first = np.array([0, 3, 1, length - 1, 2])
  mask = (np.arange(length) >= first[:, None]).astype(np.int32)
  mask[-1, -2:] = 0
  return np.where(mask == 1, tokens, PAD).astype(np.int32), mask


def forward(model, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Returns logits [B T V], NaN where there is no token."""
  import torch

  seen = torch.from_numpy(mask.astype(np.int64))
  found = model(
    input_ids=torch.from_numpy(tokens.astype(np.int64)),
    attention_mask=seen,
    position_ids=(seen.cumsum(-1) - 1).clamp(min=0),
  )
  logits = found.logits.detach().numpy()
  return np.where(mask[..., None] == 1, logits, np.nan).astype(np.float32)


def save_causal(name: str, model, seed: int) -> None:
  """Records a causal language model: logits, greedy and beam ids."""
  import torch

  tokens, mask = ragged(seed)
  with torch.no_grad():
    logits = forward(model, tokens, mask)
    prompt, seen = tokens[:4, :6].copy(), mask[:4, :6].copy()
    prompt[3], seen[3] = 0, 0
    prompt[3, -1], seen[3, -1] = 9, 1  # of one token
    ways = {}
    for way, changes in (
      ("greedy", {}),
      ("beam", dict(beams=3)),
      ("beam_first", dict(beams=2, early_stopping=True, length_penalty=0.5)),
    ):
      settings = dict(length=18, eos_ids=[EOS], pad_id=PAD) | changes
      ids = model.generate(
        input_ids=torch.from_numpy(prompt.astype(np.int64)),
        attention_mask=torch.from_numpy(seen.astype(np.int64)),
        **hub_settings(settings),
      )
      print(name, way, ids.numpy()[:, 6:].tolist())
      ways[way] = dict(
        settings=settings,
        prompt=prompt,
        mask=seen,
        ids=ids.numpy().astype(np.int32),
      )
  save_hub(name, model, {"tokens": tokens, "mask": mask}, {".": logits}, ways)
