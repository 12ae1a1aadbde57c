"""Rules of stages: which names they make, and which they leave out."""

from mmjax.weights.tables import residual


def test_stages_stack_all_blocks_but_the_first():
  rules = residual.stages(
    (1, 3),
    lambda i: f"layer{i + 1}.{{n}}.",
    *residual.torch_parts(1),
    projected=[False, True],
  )
  by_name = {rule.name: rule for rule in rules}
  assert {n for n in by_name if "project/" in n} == {
    "params/stage1/first/project/kernel"
  }
  kernel = by_name["params/stage1/rest/conv1/kernel"]
  assert kernel.sources(2) == ["layer2.1.conv1.weight", "layer2.2.conv1.weight"]
  mean = by_name["batch_stats/stage0/first/norm1/mean"]
  assert mean.sources(1) == ["layer1.0.bn1.running_mean"]
  assert not any("stage0/rest" in n for n in by_name)
  assert len(by_name) == len(rules) == 2 * 5 + 5 + 5


def test_numbers_are_written_as_theirs():
  rules = residual.stages(
    (12,),
    lambda i: "unit{n}.",
    [("conv1", "c", residual.conv)],
    [],
    number=lambda n: f"{n + 1:02}",
  )
  first, rest = rules
  assert first.sources(1) == ["unit01.c.weight"]
  assert rest.sources(11)[0] == "unit02.c.weight"
  assert rest.sources(11)[-1] == "unit12.c.weight"


def test_depths_are_counted():
  names = ["layer1.0.a", "layer1.1.a", "layer1.1.b", "layer2.0.a", "layer4.0.a"]
  assert residual.torch_depths(names) == [2, 1]
  assert residual.torch_depths([f"v.{n}" for n in names], "v.") == [2, 1]
  assert residual.torch_depths(names, "v.") == []
