"""What flows between rooms."""

import inspect

import jax

from mmjax import typing


def test_aux_is_a_pytree_of_its_parts():
  aux = typing.Aux({"stats": 1.0}, {"loss": 2.0})
  assert jax.tree.leaves(aux) == [1.0, 2.0]
  mutable, metrics = aux
  assert mutable == {"stats": 1.0} and metrics == {"loss": 2.0}


def test_protocols_say_what_loops_call():
  assert list(inspect.signature(typing.Task.loss).parameters) == [
    "self", "params", "mutable", "batch", "rngs",
  ]  # fmt: skip
  assert list(inspect.signature(typing.Evaluator.run).parameters) == [
    "self", "variables",
  ]  # fmt: skip
