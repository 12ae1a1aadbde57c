"""The table of results."""

import io
import json

from rich.console import Console

from mmjax.train import metrics, report

FOUND = {
  "concepts/text_to_image/R@1": 0.111,
  "concepts/text_to_image/R@5": 0.333,
  "concepts/text_to_image/R@5/noto": 0.4,
  "concepts/image_to_text/R@5": 0.3,
  "concepts/chance/R@1": 0.005,
  "concepts/chance/R@5": 0.025,
  "pixels/text_to_image/R@5": 0.2,
  "pixels/image_to_text/R@5": 0.1,
}


def test_each_metric_beside_its_baselines():
  header, rows = report.table(FOUND, ["pixels"])
  assert header == ["metric", "this run", "chance", "pixels"]
  assert rows == [
    ["concepts/text to image/R@1", "0.111", "0.005", ""],
    ["concepts/text to image/R@5", "0.333", "0.025", "0.200"],
    ["concepts/image to text/R@5", "0.300", "0.025", "0.100"],
  ]


def test_no_empty_columns():
  assert report.table({"a/x": 1.0}, ["b"]) == (
    ["metric", "this run"],
    [["a/x", "1.000"]],
  )


def test_files_and_screen(tmp_path):
  screen = io.StringIO()
  console = Console(file=screen, width=100)
  evals = {"concepts": {"name": "r"}, "pixels": {"name": "pixel_neighbour"}}
  with metrics.Log(tmp_path, start=0, steps=1, console=console) as log:
    report.write(tmp_path, FOUND, evals, log)
  assert json.loads((tmp_path / "results.json").read_text()) == FOUND
  assert (
    "| concepts/text to image/R@5 | 0.333 | 0.025 | 0.200 |"
    in (tmp_path / "results.md").read_text()
  )
  assert "0.333" in screen.getvalue()


def test_one_line():
  assert report.line(FOUND, limit=1) == (
    "concepts/text_to_image/R@1 0.111  ..."
  )
