import torch
from hypothesis import given, settings

from mim4d.geometry import box_interval
from tests.geometry.strategies import seeds
from tests.reference import rays

LOW, HIGH = torch.tensor([-10.0, -8.0, -3.0]), torch.tensor([10.0, 8.0, 5.0])


@settings(max_examples=40, deadline=None)
@given(seeds())
def test_interval_agrees_with_small_steps_along_the_ray(generator):
    origins = torch.randn(4, 3, generator=generator) * 12
    directions = torch.nn.functional.normalize(torch.randn(4, 3, generator=generator), dim=-1)
    near, far = box_interval(origins, directions, LOW, HIGH)
    for i in range(4):
        walked = rays.box_interval(*(v.double().numpy() for v in (origins[i], directions[i], LOW, HIGH)))
        if walked is None:
            assert far[i] - near[i] < 0.01  # missed, or grazed for less than the walk can see
        else:
            assert abs(near[i] - walked[0]) < 0.01
            assert abs(far[i] - walked[1]) < 0.01


def test_from_inside_along_an_axis():
    near, far = box_interval(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]]), LOW, HIGH)
    torch.testing.assert_close((near, far), (torch.tensor([0.0]), torch.tensor([10.0])))


def test_a_box_behind_is_missed():
    near, far = box_interval(torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]), LOW, HIGH)
    assert far <= near


def test_a_ray_beside_the_box_is_missed():
    near, far = box_interval(torch.tensor([[-20.0, 9.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]), LOW, HIGH)
    assert far <= near
