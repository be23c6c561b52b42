"""A cached constant is a real tensor, whoever asked for it first."""

import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from mim4d.geometry import constant


class Scale(torch.nn.Module):
    def forward(self, x):
        return x * constant([3.5, 7.25], x)


def test_the_same_numbers_give_the_same_tensor():
    x = torch.zeros(2)
    assert constant([1.5, 2.5], x) is constant((1.5, 2.5), x)
    assert constant([1.5, 2.5], x.double()).dtype == torch.float64


def test_a_first_call_without_data_leaves_nothing_behind():
    with FakeTensorMode():
        assert constant([11.5, 12.5], torch.zeros(2)).shape == (2,)
    assert constant([11.5, 12.5], torch.zeros(2)).tolist() == [11.5, 12.5]


def test_a_first_call_in_inference_mode_serves_training_too():
    with torch.inference_mode():
        constant([21.5, 22.5], torch.zeros(2))
    x = torch.ones(2, requires_grad=True)
    (x * constant([21.5, 22.5], x)).sum().backward()
    assert x.grad.tolist() == [21.5, 22.5]


def test_an_exported_model_leaves_nothing_behind():
    x = torch.ones(2)
    exported = torch.export.export(Scale(), (x,)).module()
    assert exported(x).tolist() == Scale()(x).tolist() == [3.5, 7.25]


def test_a_compiled_model_is_compiled_once():
    counter = CompileCounter()
    compiled = torch.compile(Scale(), backend=counter, fullgraph=True)
    for size in range(3):
        assert compiled(torch.ones(2)).tolist() == [3.5, 7.25]
        constant([float(size)], torch.ones(1))  # the cache grows
    assert counter.frame_count == 1
