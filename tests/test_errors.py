"""Errors carry an exit code and a fix."""

import inspect

import pytest

from mmjax import errors


def test_exit_codes_are_the_documented_ones():
  codes = {
    name: cls.exit_code
    for name, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.MmjaxError)
  }
  assert codes == dict(
    MmjaxError=1,
    InputError=2,
    DataError=3,
    DivergedError=4,
    StorageError=5,
    Preempted=75,
  )


@pytest.mark.parametrize(
  "name, found", [("batchsize", "batch_size"), ("zzz", None), (3, None)]
)
def test_nearest(name, found):
  assert errors.nearest(name, ["batch_size", "steps"]) == found


def test_unknown_names_field_value_and_fix():
  error = errors.unknown("config.loss", "sigmod", ["softmax", "sigmoid"])
  assert str(error) == (
    "config.loss = 'sigmod': no such name. Did you mean 'sigmoid'? "
    "Known: sigmoid, softmax."
  )
  assert "Did you mean" not in str(errors.unknown("f", "qqq", ["abc"]))
