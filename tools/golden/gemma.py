"""Gemma 1 and 2 of the hub: grouped queries, wide heads, biases, bands, caps."""

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
  _second()


def _second() -> None:
  """The band is shorter than the text, and caps are where numbers reach."""
  import torch
  from transformers import Gemma2Config, Gemma2ForCausalLM

  config = Gemma2Config(
    vocab_size=VOCAB,
    hidden_size=20,
    intermediate_size=36,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=20,
    query_pre_attn_scalar=7,
    sliding_window=4,
    attn_logit_softcapping=2.0,
    final_logit_softcapping=5.0,
    bos_token_id=2,
    eos_token_id=EOS,
    pad_token_id=PAD,
  )
  config._attn_implementation = "eager"
  model = Gemma2ForCausalLM(config)
  kept = {k: v.clone() for k, v in model.named_buffers()}
  model = redraw(model, seed=15)
  with torch.no_grad():
    for key, value in model.named_buffers():  # no parameters: sizes, angles
      value.copy_(kept[key])
    # A branch ends in a norm, whose scale is 1 more than this.
    for key, value in model.named_parameters():
      if "post_" in key:
        value.add_(1.0)
  save_causal("gemma2", sharp(model, 1.0, 1.0), seed=15)
