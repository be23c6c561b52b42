import numpy as np
import pytest

from mim4d.world.curve import Curve
from mim4d.world.scene import make_scene
from mim4d.world.traffic import STILL, Motion, Pace


@pytest.mark.parametrize("t", [-0.5, 0.0, 0.7, 1.5, 4.0, 9.0])
def test_the_way_is_the_integral_of_speed(t):
    pace = Pace((0.2, 1.5, 3.0), (4.0, 8.0, 0.0))
    steps = np.linspace(0.0, t, 20001)
    middles = 0.5 * (steps[1:] + steps[:-1])
    summed = float((np.interp(middles, pace.times, pace.speeds) * np.diff(steps)).sum())
    assert pace.distance(t) == pytest.approx(summed, abs=1e-5)


def test_heading_follows_the_way():
    motion = Motion(Curve((0.0, 0.0, 0.3), (40.0, 60.0, 10.0), (0.0, 0.02, 0.0)), -1.7, 90.0, -1, Pace((0.0,), (6.0,)))
    for t in np.linspace(0.0, 10.0, 21):
        before, now, after = (np.array(motion.pose(t + dt)) for dt in (-1e-4, 0.0, 1e-4))
        velocity = (after - before)[:2] / 2e-4
        assert np.cos(np.arctan2(velocity[1], velocity[0]) - now[2]) > 1 - 1e-6


@pytest.mark.parametrize("number", range(6))
def test_nobody_runs_into_anybody(number):
    scene = make_scene(5, number, number, hand=1 if number % 2 else -1, duration=3.5)
    vehicles = [a for a in scene.actors if a.model.category.startswith("vehicle") and "cycle" not in a.model.category]
    moving = [a for a in vehicles if a.motion.pace is not STILL]
    for t in np.arange(0.0, 3.6, 0.5):
        ego = np.array(scene.ego.pose(t))
        middle = ego[:2] + 1.4 * np.array([np.cos(ego[2]), np.sin(ego[2])])
        for actor in vehicles:
            gap = np.hypot(*(np.array(actor.motion.pose(t))[:2] - middle))
            assert gap > 1.8, (scene.story, actor.model.category, t)
        for i, actor in enumerate(moving):
            for other in moving[:i]:
                assert np.hypot(*(np.array(actor.motion.pose(t)) - other.motion.pose(t))[:2]) > 1.5
