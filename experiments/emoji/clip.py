"""CLIP on emoji: the main job with the softmax loss, nothing else changed.

Paper: Radford et al., Learning Transferable Visual Models From Natural
  Language Supervision, ICML 2021 (arXiv 2103.00020).
Command: mmjax train --config experiments/emoji/clip.py --workdir runs/clip
  Words: those of siglip.py.
Hardware: 2 CPU cores, at most 4 minutes.
Expected: not yet measured; it answers how much the loss matters here.
Reproduction: B (public data, short training; the data is in the wheel).
"""

import ml_collections

from experiments.emoji import siglip


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Returns the config of siglip.py with CLIP's loss and temperature."""
  c = siglip.get_config(arg)
  c.task.loss = "softmax"
  c.task.model.temperature_init = 1 / 0.07
  c.task.model.bias_init = None
  return c
