"""One recorded model under the names of all libraries; a wav in, text out."""

import json
import pathlib
import re
import wave

import jax
import numpy as np
import pytest
import tokenizers as hf
from safetensors.numpy import save_file

import mmjax
from mmjax import errors, weights
from mmjax.models.whisper import transcribe
from mmjax.weights import files
from mmjax.weights.tables import whisper

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "whisper.npz"
# The hub's names as OpenAI's files have them.
OPENAI = (
  (r"^model\.", ""),
  (r"\.layers\.", ".blocks."),
  (r"self_attn_layer_norm", "attn_ln"),
  (r"encoder_attn_layer_norm", "cross_attn_ln"),
  (r"final_layer_norm", "mlp_ln"),
  (r"encoder_attn\.", "cross_attn."),
  (r"self_attn\.", "attn."),
  (r"q_proj", "query"),
  (r"k_proj", "key"),
  (r"v_proj", "value"),
  (r"out_proj", "out"),
  (r"fc1", "mlp.0"),
  (r"fc2", "mlp.2"),
  (r"^encoder\.layer_norm", "encoder.ln_post"),
  (r"^decoder\.layer_norm", "decoder.ln"),
  (r"embed_tokens", "token_embedding"),
  (r"embed_positions\.weight", "positional_embedding"),
)
DIMS = dict(
  n_mels=7,
  n_vocab=53,
  n_audio_ctx=9,
  n_audio_state=20,
  n_audio_head=2,
  n_audio_layer=3,
  n_text_ctx=14,
  n_text_state=20,
  n_text_head=5,
  n_text_layer=2,
)
SCALARS = {
  "encoder/num_heads": 2,
  "decoder/num_heads": 5,
  "decoder/pre_norm": 1,
  "decoder/activation": 3,
}


def case():
  """Returns config, tensors, inputs and the reference's logits."""
  with np.load(GOLDEN) as file:
    found = {name: file[name] for name in file.files}
  parts = {
    kind: {
      k.removeprefix(f"{kind}/"): v
      for k, v in found.items()
      if k.startswith(f"{kind}/")
    }
    for kind in ("tensor", "input")
  }
  config = json.loads(str(found["config"]))
  return config, parts["tensor"], parts["input"], found["output/0"]


def openai(tensors):
  out = {}
  for name, value in tensors.items():
    for pattern, theirs in OPENAI:
      name = re.sub(pattern, theirs, name)
    out[name] = value
  return out


def ctranslate2(tensors):
  """Packs as CTranslate2's converter does."""
  out = {}

  def norm(ours, theirs):
    out[f"{ours}/gamma"] = tensors[f"{theirs}.weight"]
    out[f"{ours}/beta"] = tensors[f"{theirs}.bias"]

  def linear(ours, *theirs):
    kernels = [tensors[f"{t}.weight"] for t in theirs]
    zeros = np.zeros(len(kernels[0]), np.float32)  # of keys
    out[f"{ours}/weight"] = np.concatenate(kernels)
    out[f"{ours}/bias"] = np.concatenate(
      [tensors.get(f"{t}.bias", zeros) for t in theirs]
    )

  for part, depth in (("encoder", 3), ("decoder", 2)):
    norm(f"{part}/layer_norm", f"model.{part}.layer_norm")
    out[f"{part}/position_encodings/encodings"] = tensors[
      f"model.{part}.embed_positions.weight"
    ]
    for n in range(depth):
      ours, theirs = f"{part}/layer_{n}", f"model.{part}.layers.{n}"
      norm(
        f"{ours}/self_attention/layer_norm", f"{theirs}.self_attn_layer_norm"
      )
      own = f"{theirs}.self_attn."
      linear(
        f"{ours}/self_attention/linear_0",
        *(f"{own}{x}_proj" for x in ("q", "k", "v")),
      )
      linear(f"{ours}/self_attention/linear_1", f"{own}out_proj")
      norm(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm")
      linear(f"{ours}/ffn/linear_0", f"{theirs}.fc1")
      linear(f"{ours}/ffn/linear_1", f"{theirs}.fc2")
      if part == "encoder":
        continue
      norm(f"{ours}/attention/layer_norm", f"{theirs}.encoder_attn_layer_norm")
      other = f"{theirs}.encoder_attn."
      linear(f"{ours}/attention/linear_0", f"{other}q_proj")
      linear(f"{ours}/attention/linear_1", f"{other}k_proj", f"{other}v_proj")
      linear(f"{ours}/attention/linear_2", f"{other}out_proj")
  for conv in ("conv1", "conv2"):
    for leaf in ("weight", "bias"):
      out[f"encoder/{conv}/{leaf}"] = tensors[f"model.encoder.{conv}.{leaf}"]
  out["decoder/embeddings/weight"] = tensors[
    "model.decoder.embed_tokens.weight"
  ]
  return out


def said(scalars=SCALARS):
  section = {"spec": "WhisperSpec", "revision": 3, "scalars": scalars}
  return {"ctranslate2": section, "suppress_ids": [3, 9]}


def write(folder, config, tensors):
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  save_file(
    {k: np.ascontiguousarray(v) for k, v in tensors.items()},
    folder / "model.safetensors",
  )
  return folder


@pytest.mark.parametrize("library", ["openai", "ctranslate2"])
def test_other_libraries_name_the_same_model(tmp_path, library):
  config, tensors, inputs, want = case()
  hub = weights.load(write(tmp_path / "hub", config, tensors))
  if library == "openai":
    config, tensors = DIMS, openai(tensors)
  else:
    config, tensors = said(), ctranslate2(tensors)
  loaded = weights.load(write(tmp_path / library, config, tensors))
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, hub.variables)
  got, _ = jax.jit(loaded.model.apply)(loaded.variables, **inputs)
  np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
  for format in weights.FORMATS:
    path = weights.export(loaded, tmp_path / format, format=format)
    again = weights.load(path.parent)
    assert again.recipe.model == loaded.recipe.model
    jax.tree.map(
      np.testing.assert_array_equal, again.variables, loaded.variables
    )
  written = np.load(tmp_path / "npz" / "model.npz")
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(written[name], tensor, name)


def shapes_only(config, tensors, path="there"):
  found = {
    name: files.Tensor(x.shape, x.dtype, lambda: 1 / 0)
    for name, x in tensors.items()
  }
  return files.Checkpoint(pathlib.Path(path), found, config)


def test_an_encoder_alone(tmp_path):
  config, tensors, inputs, _ = case()
  alone = {
    k.removeprefix("model."): v
    for k, v in tensors.items()
    if k.startswith("model.encoder")
  }
  loaded = weights.load(write(tmp_path / "encoder", config, alone))
  got = loaded.model.apply(loaded.variables, inputs["audio"])
  with np.load(GOLDEN) as file:
    np.testing.assert_allclose(got, file["output/1/encoded"], atol=1e-4)


def test_what_contradicts_is_named():
  config, tensors, _, _ = case()
  packed = ctranslate2(tensors)
  for change, names, told in (
    ({**config, "activation_function": "xielu"}, tensors, "xielu"),
    (
      {k: v for k, v in DIMS.items() if k != "n_text_head"},
      openai(tensors),
      "n_text_head",
    ),
    ({**DIMS, "n_text_state": 16}, openai(tensors), "n_text_state = 16"),
    (said({**SCALARS, "decoder/pre_norm": 0}), packed, "pre_norm = 0"),
    (said({**SCALARS, "decoder/activation": 1}), packed, "activation = 1"),
    (said({"encoder/num_heads": 2}), packed, "decoder/num_heads"),
    (said(), {"encoder/conv2/bias": np.zeros(3)}, "encoder/conv1/weight"),
  ):
    with pytest.raises(errors.InputError, match=told):
      whisper.build(shapes_only(change, names))
  assert whisper.build(shapes_only({}, {"a": np.zeros(2)})) is None
  other = {"ctranslate2": {"spec": "TransformerSpec", "scalars": {}}}
  assert whisper.build(shapes_only(other, packed)) is None


def test_a_wav_in_text_out(tmp_path):
  """The ten lines of the README, on a directory as the hub has it."""
  config, tensors, _, _ = case()
  folder = write(tmp_path / "tiny", config, tensors)
  processor = dict(
    feature_extractor_type="WhisperFeatureExtractor",
    feature_size=7,
    chunk_length=1,
    hop_length=888,
  )
  (folder / "processor_config.json").write_text(
    json.dumps({"feature_extractor": processor})
  )
  words = {f"w{i}": i for i in range(49)} | {
    f"<|{i}|>": i for i in range(49, 53)
  }
  pipeline = hf.Tokenizer(hf.models.WordLevel(words, unk_token="w0"))
  pipeline.add_special_tokens([f"<|{i}|>" for i in range(49, 53)])
  pipeline.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "PreTrainedTokenizer"})
  )
  sound = np.random.default_rng(0).integers(-9000, 9000, 6000, np.int16)
  with wave.open(str(tmp_path / "a.wav"), "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(8000)
    file.writeframes(sound.tobytes())

  model, variables, preprocess = mmjax.load(folder)
  batch = preprocess(audio=[str(tmp_path / "a.wav")])
  assert batch["audio"].shape == (1, 18, 7)
  ids = np.asarray(transcribe(model, variables, batch["audio"]))
  assert ids.shape == (1, 14) and ids[0, 0] == 50
  told = [f"w{i}" for i in ids[0] if i < 49]
  [text] = preprocess.texts(ids)
  assert told and text.split() == told
