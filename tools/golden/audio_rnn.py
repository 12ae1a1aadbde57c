"""PyTorch's nn.LSTM and nn.GRU on packed sequences of unlike lengths.

Padding holds great values, which packing leaves out.
"""

import numpy as np
from make_golden import redraw, save


def make() -> None:
  """Records the cases."""
  import torch

  class Classifier(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.rnn = torch.nn.LSTM(
        7, 11, num_layers=3, bidirectional=True, batch_first=True
      )
      self.head = torch.nn.Linear(22, 5)

  model = redraw(Classifier(), seed=7)
  audio, lengths = _sound((4, 13, 7), (13, 1, 6, 9), seed=7)
  tokens, _ = _run(model.rnn, audio, lengths)
  pooled = tokens.sum(1) / torch.from_numpy(lengths)[:, None]
  with torch.no_grad():
    logits = model.head(pooled)
  save(
    "audio_rnn_lstm",
    {"model_type": "lstm", "hidden_size": 11, "bidirectional": True},
    model.state_dict(),
    {"audio": audio, "lengths": lengths},
    {"0": logits, "1/tokens": tokens, "1/pre_logits": pooled},
  )

  # Two frames of 5 side by side, one frame apart; no config of PyTorch's.
  model = redraw(torch.nn.GRU(10, 9, num_layers=2, batch_first=True), seed=8)
  audio, lengths = _sound((3, 12, 5), (12, 5, 8), seed=8)
  tokens, last = _run(model, *_beside(audio, lengths))
  save(
    "audio_rnn_gru",
    {"stack": 2, "stride": 1, "pool": "last"},
    model.state_dict(),
    {"audio": audio, "lengths": lengths},
    {"0": last[-1], "1/tokens": tokens},
  )

  model = redraw(
    torch.nn.GRU(6, 8, bidirectional=True, batch_first=True), seed=9
  )
  audio, lengths = _sound((3, 9, 6), (4, 9, 2), seed=9)
  tokens, last = _run(model, audio, lengths)
  save(
    "audio_rnn_gru_both",
    {"model_type": "gru", "num_layers": 1, "pool": "last"},
    model.state_dict(),
    {"audio": audio, "lengths": lengths},
    {"0": torch.cat([last[-2], last[-1]], -1), "1/tokens": tokens},
  )


def _sound(shape, lengths, seed) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  audio = rng.normal(size=shape).astype(np.float32)
  lengths = np.array(lengths, np.int32)
  audio[np.arange(shape[1]) >= lengths[:, None]] = 50.0
  return audio, lengths


def _beside(audio, lengths) -> tuple[np.ndarray, np.ndarray]:
  """Frames t and t + 1, zeros after the end."""
  kept = audio * (np.arange(audio.shape[1]) < lengths[:, None])[..., None]
  after = np.concatenate([kept[:, 1:], 0 * kept[:, :1]], 1)
  return np.concatenate([kept, after], 2), lengths


def _run(rnn, audio, lengths):
  """Returns outputs [B T E], 0 at padding, and h_n of PyTorch."""
  import torch
  from torch.nn.utils import rnn as pack

  packed = pack.pack_padded_sequence(
    torch.from_numpy(audio),
    torch.from_numpy(lengths).long(),
    batch_first=True,
    enforce_sorted=False,
  )
  with torch.no_grad():
    out, last = rnn(packed)
  out, _ = pack.pad_packed_sequence(
    out, batch_first=True, total_length=audio.shape[1]
  )
  return out, last[0] if isinstance(last, tuple) else last
