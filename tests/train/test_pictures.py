"""Pictures are drawn, and show what they should."""

import types

import numpy as np
import pytest
from matplotlib.figure import Figure

from mmjax.train import pictures


def rows():
  found = []
  for step in range(20, 401, 20):
    found.append({"step": step, "kind": "train", "loss": 100 / step})
    if step % 100 == 0:
      found.append(
        {
          "step": step,
          "kind": "eval",
          "a/text_to_image/R@5": step / 1000,
          "a/text_to_image/R@5/noto": 0.9,
          "a/chance/R@5": 0.025,
        }
      )
  found.append({"step": 400, "kind": "eval", "pixels/R@5": 0.2})
  return found


def test_panels_are_metrics_with_a_course():
  panels = pictures._panels(rows())
  assert panels == {
    "a: text to image": {
      "R@5": ([(100, 0.1), (200, 0.2), (300, 0.3), (400, 0.4)], 0.025)
    }
  }


def test_curves(tmp_path):
  for name, given in (("full", rows()), ("empty", [])):
    pictures.curves(given, tmp_path / f"{name}.png")
    assert _read(tmp_path / f"{name}.png").std() > 1
  one, none = (_read(tmp_path / f"{n}.png") for n in ("full", "empty"))
  assert one.shape[1] > 1.9 * none.shape[1]  # two panels, one panel


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_smoothing_keeps_a_line_straight(reach):
  line = np.arange(20.0)
  got = pictures._smooth(line, reach)
  np.testing.assert_allclose(got, line)


def test_a_step_that_was_skipped_leaves_the_curve_whole():
  def lines(given):
    axis = Figure().subplots()
    pictures._draw_loss(axis, given)
    return [line.get_xydata() for line in axis.lines]

  good = rows()
  bad = [
    {"step": 50, "kind": "train", "loss": float("nan")},
    {"step": 51, "kind": "train", "loss": float("inf")},
    {"step": 52, "kind": "train", "loss": None},
  ]
  for got, want in zip(
    lines([*good[:3], *bad, *good[3:]]), lines(good), strict=True
  ):
    np.testing.assert_array_equal(got, want)
  assert lines(bad) == []


def test_gallery_frames_hits_in_green(tmp_path):
  image = np.full((16, 16, 3), 128, np.uint8)

  def picture(hits):
    row = types.SimpleNamespace(query="dog", images=[image] * 5, hits=hits)
    return pictures.gallery([row], tmp_path / "gallery.png")

  def green(x):
    x = x.astype(int)
    return int(((x[..., 1] > x[..., 0] + 60) & (x[..., 1] > 120)).sum())

  none, one, two = (green(picture([i < n for i in range(5)])) for n in range(3))
  assert none == 0 and one > 1000
  assert two == pytest.approx(2 * one, rel=0.05)
  assert (_read(tmp_path / "gallery.png") == 255).mean() > 0.4


def test_collect_takes_the_first_gallery():
  with_gallery = types.SimpleNamespace(gallery=lambda v, n: [v] * n)
  evaluators = {"a": object(), "b": with_gallery}
  assert pictures.collect(evaluators, "v", 2) == ["v", "v"]
  assert pictures.collect({"a": object()}, "v") == []


def _read(path):
  import cv2

  return cv2.imread(str(path))
