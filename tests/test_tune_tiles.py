"""What tools/tune_tiles.py makes of estimates; the estimates are made up."""

import pathlib
import sys

import pytest

from mmjax.ops.kernels import tiles
from mmjax.ops.kernels.tiles import Entry, Flash, Key, Whole

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tools"))
import tune_tiles
from attention_contestants import SHAPES

KEY = Key("v6e", "whole", 256, 64, "none", "bfloat16")


def _try(unroll, forward, backward, kind="cycles"):
  cycles = {"whole": forward, "whole_backward": backward}
  return tune_tiles.Try(Whole(1, 4, 1, 256, unroll), cycles, kind)


def test_candidates_are_tiles_that_the_kernels_take():
  for name, shape in SHAPES.items():
    found = tune_tiles.candidates(shape)
    assert len(found) == len(set(found)) >= 3, name
    for tried in found:
      if shape.keys > tiles.LONGEST:
        assert isinstance(tried, Flash)
        continue
      assert isinstance(tried, Whole) and tried.rows % 128 == 0
      assert shape.queries % tried.rows != 1
      assert shape.heads // shape.kv_heads % tried.groups == 0


def test_each_pass_gets_its_own_best():
  tries = [_try(1, 300.0, 700.0), _try(2, 400.0, 600.0)]
  found = tune_tiles.best("v6e", "vit", SHAPES["vit"], tries, "0.1")
  back = KEY._replace(kernel="whole_backward")
  assert set(found) == {KEY, back}
  assert found[KEY].tiles == tries[0].tiles
  assert found[back].tiles == tries[1].tiles
  assert found[KEY].provenance == "static, libtpu 0.1: 300 cycles a head of vit"


def test_bundles_are_not_compared_with_cycles():
  tries = [_try(1, 300.0, 700.0), _try(2, 200.0, 200.0, "bundles")]
  found = tune_tiles.best("v6e", "vit", SHAPES["vit"], tries, "0.1")
  assert all(entry.tiles == tries[0].tiles for entry in found.values())
  alone = tune_tiles.best("v5e", "vit", SHAPES["vit"], tries[1:], "0.1")
  assert all("200 bundles" in entry.provenance for entry in alone.values())


def test_what_was_measured_stays():
  static = Entry(Whole(1, 2, 1, 256), "static, libtpu 0.1: 9 cycles")
  measured = Entry(Whole(1, 8, 1, 256), "measured on v6e: 9 us")
  assert tune_tiles.merge({KEY: measured}, {KEY: static})[KEY] == measured
  assert tune_tiles.merge({KEY: static}, {KEY: measured})[KEY] == measured
  assert tune_tiles.merge({}, {KEY: static}) == {KEY: static}


def test_what_is_written_is_read_again():
  text = tune_tiles.FILE.read_text()
  flash = KEY._replace(kernel="flash", length=2048)
  table = {
    KEY: Entry(Whole(1, 4, 1, 256, 4), "static, libtpu 0.1: 300 cycles"),
    flash: Entry(Flash(512, 1024), "measured on v6e: 3 us"),
  }
  new = tune_tiles.written(text, table)
  block = new.split(tune_tiles.FIRST)[1].split(tune_tiles.LAST)[0]
  names = dict(vars(tiles))
  exec(block, names)
  assert names["TABLE"] == table
  assert tune_tiles.written(new, tiles.TABLE) == tune_tiles.written(
    text, tiles.TABLE
  )
  assert max(map(len, block.splitlines())) <= 80
  with pytest.raises(ValueError, match="to here"):
    tune_tiles.written(text.replace(tune_tiles.LAST, ""), table)


@pytest.mark.parametrize(
  "found, why, bundles, kind",
  [
    ({"attention_whole.1": 48_000}, "", {}, "cycles"),
    ({"attention_whole.1": 48}, "", {}, "impossible"),
    ({}, "aborted: x", {"attention_whole.1": 500.0}, "bundles"),
    ({}, "aborted: x", {}, "aborted"),
  ],
)
def test_a_figure_that_cannot_be_is_none(
  monkeypatch, found, why, bundles, kind
):
  monkeypatch.setattr(
    tune_tiles.kernel_cycles, "simulate", lambda case: (found, why)
  )
  monkeypatch.setattr(tune_tiles.kernel_cycles, "count", lambda case: bundles)
  got = tune_tiles.measure("v6e", SHAPES["vit"], Whole(1, 4, 1, 256))
  if kind in ("cycles", "bundles"):
    assert got.kind == kind
    assert got.cycles == {"whole": 1000.0 if kind == "cycles" else 500.0}
  else:
    assert kind in got
