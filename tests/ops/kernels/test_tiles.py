import pytest

from mmjax.ops.kernels import tiles


def _key(**given):
  wanted = dict(
    chip="v5e",
    kernel="flash",
    length=2048,
    head_dim=64,
    mask="none",
    dtype="bfloat16",
  )
  return tiles.Key(**{**wanted, **given})


def test_buckets_are_powers_of_two():
  assert [tiles.bucket(n) for n in (1, 32, 33, 197, 256)] == [
    32,
    32,
    64,
    256,
    256,
  ]


def test_the_table_comes_before_the_rule(monkeypatch):
  key = _key()
  rule = tiles.flash(key)
  assert min(rule.block_q, rule.block_k) >= 512
  found = tiles.Entry(tiles.Flash(256, 2048), "static, libtpu 0")
  monkeypatch.setitem(tiles.TABLE, key, found)
  assert tiles.flash(key) == found.tiles
  assert tiles.flash(_key(chip="v6e")) == rule


@pytest.mark.parametrize("chip", sorted(set(tiles.CHIPS.values())))
def test_entries_say_where_they_come_from(chip):
  for key, entry in tiles.TABLE.items():
    assert entry.provenance and key.chip in {*tiles.CHIPS.values()}
    assert key.length == tiles.bucket(key.length)
  assert tiles.lookup(_key(chip=chip, length=7)) is None


def test_a_head_that_does_not_fit_is_not_for_the_whole_kernel():
  key = _key(kernel="whole")
  args = ((1500, 1500), (64, 64), 2)
  assert tiles.whole((1, 8, 1), *args, None, key) is not None
  bias = (1, 8, 1500, 1500)
  assert tiles.whole((1, 8, 1), *args, bias, key) is None


def test_a_table_of_whole_tiles_is_cut_to_the_call(monkeypatch):
  key = _key(kernel="whole", length=256)
  back = key._replace(kernel="whole_backward")
  found = tiles.Entry(tiles.Whole(1, 4, 1, 256, 4), "static, libtpu 0")
  monkeypatch.setitem(tiles.TABLE, key, found)
  other = tiles.Entry(tiles.Whole(1, 2, 1, 128, 2), "static, libtpu 0")
  monkeypatch.setitem(tiles.TABLE, back, other)
  args = ((197, 197), (64, 64), 2, None, key)
  assert tiles.whole((8, 12, 1), *args) == tiles.Whole(
    1, 4, 1, 197, 4, backward=tiles.Whole(1, 2, 1, 128, 2)
  )
  few = tiles.whole((8, 3, 1), *args)
  assert few is not None and few.kv_heads == few.unroll == 3


def test_long_heads_take_turns_where_the_chip_multiplies_256_wide():
  def of(chip, length):
    key = _key(kernel="whole", chip=chip, length=tiles.bucket(length))
    lengths = (length, length)
    found = tiles.whole((8, 16, 1), lengths, (128, 128), 2, None, key)
    assert found is not None and found.backward is not None
    return [(x.rows, x.block_k) for x in (found, found.backward)]

  assert of("v6e", 729) == of("tpu7x", 729) == [(256, 256)] * 2
  assert of("v5e", 729) == of(None, 729) == [(729, 0)] * 2
  assert of("v6e", 257) == [(257, 0)] * 2  # as many keys as a turn has


def test_an_entry_of_more_heads_than_the_length_allows_is_passed_by(
  monkeypatch,
):
  """Entries are of buckets: 257 tokens and 512 share theirs."""
  key = _key(kernel="whole", length=512)
  found = tiles.Entry(tiles.Whole(1, 16, 1, 512, 16), "static, libtpu 0")
  monkeypatch.setattr(tiles, "TABLE", {key: found})
  units = []
  for length in (257, 512):
    got = tiles.whole((8, 16, 1), (length, length), (64, 64), 2, None, key)
    assert got is not None
    units.append((got.kv_heads, got.unroll))
  assert units == [(16, 16), (4, 4)]
