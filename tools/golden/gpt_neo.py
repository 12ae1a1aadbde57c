"""GPT-Neo of the hub: bands shorter than the text, layers in unlike turns."""

from golden.gpt2 import EOS, VOCAB, save_causal, sharp
from make_golden import redraw


def make() -> None:
  """Records the cases."""
  from transformers import GPTNeoConfig, GPTNeoForCausalLM

  for name, types, layers, window, inner in (
    ("gpt_neo", [[["global", "local"], 2]], 4, 3, 36),
    ("gpt_neo_uneven", [[["local"], 2], [["global"], 1]], 3, 4, None),
  ):
    config = GPTNeoConfig(
      vocab_size=VOCAB,
      max_position_embeddings=20,
      hidden_size=20,
      num_layers=layers,
      attention_types=types,
      num_heads=5,
      intermediate_size=inner,
      window_size=window,
      bos_token_id=EOS,
      eos_token_id=EOS,
    )
    model = sharp(redraw(GPTNeoForCausalLM(config), seed=13))
    save_causal(name, model, seed=13)
