"""Gemma of the hub: grouped queries, heads wider than the width, biases."""

from golden.gpt2 import EOS, PAD, VOCAB, save_causal, sharp
from make_golden import redraw


def make() -> None:
  """Records the cases."""
  import torch
  from transformers import GemmaConfig, GemmaForCausalLM

  for name, heads, kv_heads, bias, theta in (
    ("gemma_one_kv", 5, 1, False, 10_000.0),
    ("gemma_grouped", 6, 3, True, 50.0),
  ):
    config = GemmaConfig(
      vocab_size=VOCAB,
      hidden_size=20,
      intermediate_size=36,
      num_hidden_layers=2,
      num_attention_heads=heads,
      num_key_value_heads=kv_heads,
      head_dim=6,
      max_position_embeddings=20,
      attention_bias=bias,
      rope_parameters=dict(rope_type="default", rope_theta=theta),
      bos_token_id=2,
      eos_token_id=EOS,
      pad_token_id=PAD,
    )
    model = GemmaForCausalLM(config)
    kept = {k: v.clone() for k, v in model.named_buffers()}
    model = redraw(model, seed=14)
    with torch.no_grad():
      for key, value in model.named_buffers():  # no parameters: sizes, angles
        value.copy_(kept[key])
    save_causal(name, sharp(model, 12.0, 1.0), seed=14)
