import math

import jax
import numpy as np
import pytest

from mmjax import errors, weights

# As published: microsoft/resnet-50, -18 (the latter without what is default).
R50 = {
  "model_type": "resnet",
  "depths": [3, 4, 6, 3],
  "downsample_in_first_stage": False,
  "embedding_size": 64,
  "hidden_act": "relu",
  "hidden_sizes": [256, 512, 1024, 2048],
  "layer_type": "bottleneck",
  "num_channels": 3,
}
R18 = {
  "model_type": "resnet",
  "depths": [2, 2, 2, 2],
  "hidden_sizes": [64, 128, 256, 512],
  "layer_type": "basic",
}


@pytest.mark.parametrize(
  "config, published, features",
  [(R50, 25_557_032, 2048), (R18, 11_689_512, 512)],
)
def test_published_parameter_counts(declared, config, published, features):
  _, leaves = declared(config)
  count = sum(
    math.prod(x.shape) for n, x in leaves.items() if n.startswith("params/")
  )
  assert count == published - 1000 * (features + 1)  # no tensors, no head


@pytest.mark.parametrize(
  "name, field, value",
  [
    ("resnet_v1_encoder", "downsample_in_bottleneck", False),
    ("resnet_v1_encoder", "hidden_act", "relu"),
    ("resnet_basic", "hidden_act", "gelu"),
  ],
)
def test_the_config_matters(recorded, name, field, value):
  _, out, want = recorded(name, lambda config: config.update({field: value}))
  assert np.abs(out[0] - want["0"]).max() > 1e-2


def test_downsampling_in_the_first_stage_is_the_configs(recorded):
  _, out, want = recorded(
    "resnet_v1_encoder",
    lambda config: config.update(downsample_in_first_stage=False),
  )
  assert out[1]["tokens"].shape[1] > want["1/tokens"].shape[1]


def test_statistics_are_read_and_half_precision_becomes_single(recorded):
  def change(tensors):
    for name, x in tensors.items():
      if x.dtype == np.float32:
        tensors[name] = x.astype(np.float16)

  loaded, out, want = recorded("resnet_classifier", tensors=change)
  stats = loaded.variables["batch_stats"]
  assert np.asarray(stats["stem_norm"]["var"]).min() >= 1
  leaves = jax.tree.leaves(loaded.variables)
  assert all(x.dtype == np.float32 for x in leaves)
  np.testing.assert_allclose(out[0], want["0"], atol=2e-2)


def test_statistics_stay_in_single_precision(recorded, tmp_path):
  want, _, _ = recorded("resnet_classifier")
  got = weights.load(tmp_path, dtype="bfloat16").variables
  assert {x.dtype.name for x in jax.tree.leaves(got["params"])} == {"bfloat16"}
  jax.tree.map(
    np.testing.assert_array_equal,
    got["batch_stats"],
    want.variables["batch_stats"],
  )


def test_what_is_not_known_is_refused_by_name(declared):
  for field, value in (("layer_type", "wide"), ("hidden_act", "xielu")):
    with pytest.raises(errors.InputError, match=f"{field} = '{value}'"):
      declared(R50 | {field: value})


TORCHVISION = "resnet_basic_torchvision"


def test_timms_other_resnets_are_refused_by_name(recorded):
  def say(name):
    return lambda config: config.update(architecture=name)

  for name in (
    "resnet18",
    "resnet18.a1_in1k",
    "tv_resnet34",
    "wide_resnet50_2",
  ):
    recorded(TORCHVISION, say(name))
  for name in ("resnetblur18", "resnet18d.ra2_in1k", "seresnet50"):
    with pytest.raises(errors.InputError, match=f"architecture = '{name}'"):
      recorded(TORCHVISION, say(name))


def test_a_torchvision_file_without_its_head_is_an_encoder(recorded):
  def change(tensors):
    del tensors["fc.weight"], tensors["fc.bias"]

  _, out, want = recorded(TORCHVISION, tensors=change)
  np.testing.assert_allclose(out[0], want["1/pre_logits"], atol=1e-5)


def test_missing_and_foreign_tensors_are_named(recorded):
  def rename(tensors):
    tensors["layer1.0.se.fc1.weight"] = tensors.pop("layer1.1.bn2.running_var")

  with pytest.raises(errors.InputError) as e:
    recorded(TORCHVISION, tensors=rename)
  assert "layer1.1.bn2.running_var) missing" in str(e.value)
  assert "layer1.0.se.fc1.weight) not expected" in str(e.value)


def test_groups_are_refused_by_name(recorded):
  def change(tensors):
    for name, x in list(tensors.items()):
      if name.endswith("conv2.weight"):
        last = name.replace("conv2", "conv3")
        tensors[last] = x[:, :, :1, :1].copy()
        tensors[name] = x[:, :1].copy()

  with pytest.raises(errors.InputError, match="groups"):
    recorded(TORCHVISION, tensors=change)
