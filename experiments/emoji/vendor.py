"""SigLIP on emoji, one vendor held out: the same concepts in another style.

Paper: as siglip.py (arXiv 2303.15343). The split asks whether a picture of a
  known thing, drawn by a hand never seen, still finds its name; flags, which
  all vendors draw alike, are left out.
Command: mmjax train --config experiments/emoji/vendor.py --workdir runs/vendor
  Words: smoke, fold=0..2 (the vendor held out: noto, twemoji, fluent),
  locale=de or en+de.
Hardware: 2 CPU cores, at most 4 minutes.
Expected: far above held-out concepts; read it beside the raw-pixel nearest
  neighbour, which is already strong here and is printed in the same table.
Reproduction: B (public data, short training; the data is in the wheel).
"""

import ml_collections

from experiments.emoji import siglip


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Returns the config of siglip.py with the vendor split."""
  c = siglip.get_config(arg)
  sources = [c.tokenizers.emoji.source, c.data.source]
  sources += [e.data for e in c.evals.values()]
  sources += [c.evals.pixel_neighbour.train]
  for source in sources:
    if source.fold not in (0, 1, 2):
      raise ValueError(
        f"argument fold={source.fold} is not a vendor; known: 0 (noto), "
        "1 (twemoji), 2 (fluent)."
      )
    source.holdout = "vendor"
  c.evals.pixel_neighbour.protocol = "vendor"
  return c
