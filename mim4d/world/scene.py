"""A scene: a place, the light, the drive of the ego car, and all objects that move or are annotated."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import models, plants
from .curve import Curve
from .light import Light, make_light
from .place import Place, make_place
from .shapes import Shapes, join, placed
from .street import Road
from .traffic import EGO_MIDDLE, EGO_SIZE, STILL, Actor, Motion, Pace, Room

STOPS = "stops at traffic lights"


@dataclass(frozen=True)
class Scene:
    """The content of a scene in the frame of its place; time 0 is the first key frame."""

    place: Place
    light: Light
    ego: Motion
    actors: tuple[Actor, ...]
    signals: Shapes
    """[shapes] traffic lights."""
    story: str
    """Short description of the drive."""


def longest_drive(duration: float) -> float:
    """Return the longest drive of an ego car in ``duration`` seconds, metres."""
    return 12.0 * duration + 10.0


def make_scene(seed: int, number: int, place: int, hand: int, duration: float) -> Scene:
    """Make a scene.

    Args:
        seed: Seed of the world.
        number: Number of the scene.
        place: Number of its place.
        hand: +1 if traffic drives on the right, -1 if on the left.
        duration: Time from the first to the last key frame, seconds.
    """
    rng = np.random.default_rng([seed, number, 2])
    cast = _Cast(rng, make_place(seed, place, hand, longest_drive(duration)), duration)
    stories: list[tuple[float, Callable[[], None]]] = [
        (0.5, cast.cruise),
        (0.25, cast.stop_at_lights),
        (0.25, cast.turn),
    ]
    pick = int(rng.choice(len(stories), p=[odds for odds, _ in stories]))
    stories[pick][1]()
    cast.roadworks()
    cast.left_standing(np.random.default_rng([seed, number, 5]))
    cast.fill_kerbs()
    cast.fill_pavements()
    cast.cyclists()
    return Scene(cast.place, make_light(rng), cast.ego, tuple(cast.actors), cast.signals(), cast.story)


class _Cast:
    """Samples the drive of the ego car and the actors of a scene."""

    def __init__(self, rng: np.random.Generator, place: Place, duration: float) -> None:
        self.rng = rng
        self.place = place
        self.duration = duration
        self.road: Road = place.street.roads[0]
        self.actors: list[Actor] = []
        self.ego = Motion(self.road.curve, 0.0, 0.0, 1, STILL)
        self.story = ""
        self.near = 0.0
        """Arc length of the main road near which the ego car starts, metres."""
        self._room: Room | None = None

    # --- the drive of the ego car ----------------------------------------------------------------------------------

    def cruise(self) -> None:
        """Drive along the main road at a varying speed."""
        rng, road = self.rng, self.road
        lane = int(rng.integers(road.lanes))
        base = rng.uniform(5.0, 11.0)
        knots = np.linspace(0.0, max(self.duration, 1.0), 4)
        pace = Pace(tuple(knots), tuple(np.clip(base + rng.uniform(-2.0, 2.0, 4), 2.0, 12.0)))
        first = rng.uniform(70.0, max(80.0, road.curve.length - 130.0 - float(pace.distance(self.duration))))
        self.ego, self.near = Motion(road.curve, road.lane(1, lane), first, 1, pace), first
        self.story = "straight on, changing speed"
        self._flow(pace, lane)
        self._oncoming(Pace((0.0,), (rng.uniform(6.0, 11.0),)))
        self._waiting_on_side_roads()

    def stop_at_lights(self) -> None:
        """Brake at a stop line while others cross."""
        rng, road = self.rng, self.road
        lane = int(rng.integers(road.lanes))
        speed, brake = rng.uniform(5.0, 9.0), max(0.45 * self.duration, 1.0)
        begin = 0.15 * self.duration
        pace = Pace((0.0, begin, begin + brake), (speed, speed, 0.0))
        way = float(pace.distance(begin + brake))
        lines = [s for s, direction in road.stops if direction > 0 and s > 30.0 + way]
        line = lines[int(rng.integers(len(lines)))]
        front = EGO_MIDDLE + EGO_SIZE[0] / 2
        first = line - front - rng.uniform(0.5, 1.5) - way
        self.ego, self.near = Motion(road.curve, road.lane(1, lane), first, 1, pace), first
        self.story = STOPS
        self._flow(pace, lane, leaders=False)
        self._crossing_traffic(line)
        self._crossing_people(line)
        for s, direction in road.stops:
            if direction < 0 and abs(s - line) < 60.0:
                for number in range(road.lanes):
                    self._queue(road, -1, number, s, int(rng.integers(1, 4)))

    def turn(self) -> None:
        """Turn into a side road."""
        rng, road = self.rng, self.road
        junctions = [i for i, (low, _) in enumerate(road.junctions) if low > 60.0]
        number = junctions[int(rng.integers(len(junctions)))]
        low, high = road.junctions[number]
        side, middle = self.place.street.roads[1 + number], 0.5 * (low + high)
        start, end = side.junctions[0]
        ways = [w for w, there in ((1, end < side.curve.length), (-1, start > 0.0)) if there]
        way = int(rng.choice(ways))
        lane = 0 if way == road.hand else road.lanes - 1
        radius = rng.uniform(9.0, 11.0) if way == road.hand else rng.uniform(6.5, 8.0)
        offset = road.lane(1, lane)
        corner = middle - side.lane(way, 0)
        speed = min(rng.uniform(3.5, 6.0), 90.0 / max(self.duration, 1.0))  # side roads are short
        pace = Pace((0.0, 0.5 * self.duration, 0.5 * self.duration + 2.0), (speed * 1.3, speed, speed * 1.2))
        before = 60.0
        x, y, heading = (float(v) for v in road.curve.point(corner - radius, offset))
        begin = (x - before * np.cos(heading), y - before * np.sin(heading), heading)
        curve = Curve(begin, (before, radius * np.pi / 2, 120.0), (0.0, way / radius, 0.0))
        approach = min(rng.uniform(0.25, 0.5) * max(float(pace.distance(self.duration)), 8.0), 25.0)  # before the turn
        self.ego, self.near = Motion(curve, 0.0, before - approach, 1, pace), corner - radius - approach
        self.story = f"turns {'left' if way > 0 else 'right'} at a junction"
        self._waiting_on_side_roads(but=number)
        if way != road.hand:
            self._oncoming(Pace((0.0,), (rng.uniform(6.0, 11.0),)))

    def signals(self) -> Shapes:
        """Make traffic lights at all stop lines: red on the road of the ego car if it stops, else on the side roads."""
        parts = []
        for i, road in enumerate(self.place.street.roads):
            color = "red" if (i == 0) == (self.story == STOPS) else "green"
            for s, direction in road.stops:
                side = -direction * road.hand
                x, y, heading = (float(v) for v in road.curve.point(s, side * (road.half_width + 0.6)))
                facing = heading + (np.pi if direction > 0 else 0.0)
                parts.append(placed(plants.traffic_light(color), x, y, facing))
        return join(parts)

    # --- traffic ---------------------------------------------------------------------------------------------------

    def _vehicle(self, braking: bool = False) -> models.Model:
        """Sample a vehicle in traffic."""
        pick = self.rng.random()
        if pick < 0.80:
            return models.car(self.rng, braking)
        if pick < 0.90:
            return models.truck(self.rng, braking)
        if pick < 0.95:
            return models.bus(self.rng, braking)
        return models.motorcycle(self.rng)

    def _flow(self, pace: Pace, ego_lane: int, leaders: bool = True) -> None:
        """Add traffic in the direction of the ego car. All vehicles of a lane have one pace, so that none collide."""
        rng, road = self.rng, self.road
        for lane in range(road.lanes):
            lane_pace = pace if lane == ego_lane else Pace(pace.times, tuple(1.15 * v for v in pace.speeds))
            spots = []
            if leaders or lane != ego_lane:
                spots += list(np.cumsum(rng.uniform(16, 45, 4)) + (2.0 if lane == ego_lane else -12.0))
            spots += list(-np.cumsum(rng.uniform(14, 40, 3)))
            for gap in spots:
                if rng.random() < 0.75:
                    self._drive(Motion(road.curve, road.lane(1, lane), self.near + gap, 1, lane_pace))

    def _oncoming(self, pace: Pace) -> None:
        """Add traffic in the opposite direction."""
        for lane in range(self.road.lanes):
            for s in self.near + np.arange(-60.0, 160.0, 26.0) + self.rng.uniform(-6, 6, 9):
                if self.rng.random() < 0.6:
                    self._drive(Motion(self.road.curve, self.road.lane(-1, lane), float(s), -1, pace))

    def _queue(self, road: Road, direction: int, lane: int, line: float, count: int) -> None:
        """Add vehicles that wait at a stop line."""
        for i in range(count):
            model = self._vehicle(braking=True)
            back = line - direction * (1.0 + model.size[0] / 2 + i * 8.0 + self.rng.uniform(0, 1))
            if 0.0 < back < road.curve.length and (model.size[0] < 7.0 or count == 1):
                self._add(Actor(model, Motion(road.curve, road.lane(direction, lane), back, direction, STILL)))

    def _waiting_on_side_roads(self, but: int = -1) -> None:
        """Add vehicles that wait on all side roads except number ``but``."""
        for i, road in enumerate(self.place.street.roads[1:]):
            for line, direction in road.stops:
                if i != but and self.rng.random() < 0.6:
                    self._queue(road, direction, 0, line, int(self.rng.integers(1, 3)))

    def _crossing_traffic(self, line: float) -> None:
        """Add traffic along the side road behind a stop line."""
        junctions = self.road.junctions
        number = int(np.argmin([abs(low - line) if low > line else np.inf for low, _ in junctions]))
        side = self.place.street.roads[1 + number]
        whole = [way for way in (1, -1) if len(side.stops) == 2]
        for way in whole:
            pace = Pace((0.0,), (self.rng.uniform(5.0, 9.0),))
            for s in np.arange(20.0, side.curve.length - 20.0, 24.0) + self.rng.uniform(-5, 5):
                if self.rng.random() < 0.5:
                    self._drive(Motion(side.curve, side.lane(way, 0), float(s), way, pace))

    def _drive(self, motion: Motion) -> None:
        """Add a vehicle with this motion."""
        self._add(Actor(self._vehicle(), motion))

    def _add(self, actor: Actor) -> None:
        """Add an actor unless it would collide with another or with the ego car at any time."""
        if not self._room:
            self._room = Room(self.duration, self.ego)
        if self._room.claim(actor):
            self.actors.append(actor)

    # --- kerbs and pavements ---------------------------------------------------------------------------------------

    def fill_kerbs(self) -> None:
        """Add parked vehicles along parking strips."""
        for road in self.place.street.roads:
            for direction in (1, -1):
                if not road.parking:
                    continue
                occupied = self.rng.uniform(0.2, 0.9)
                offset = -road.hand * direction * (road.half_width - 1.15)
                for s in np.arange(8.0, road.curve.length - 8.0, 6.2):
                    clear = road.clear_of_junctions(np.array([s]))[0]
                    if clear > 4.0 and self.rng.random() < occupied:
                        s = float(s + self.rng.uniform(-0.4, 0.4))
                        model = models.car(self.rng)
                        turned = float(self.rng.normal(0, 0.02))
                        self._add(Actor(model, Motion(road.curve, offset, s, direction, STILL, turned), parked=True))

    def fill_pavements(self) -> None:
        """Add people who walk or stand on the pavements."""
        rng, street = self.rng, self.place.street
        for _ in range(int(rng.integers(8, 36))):
            road = street.roads[0] if rng.random() < 0.8 else street.roads[int(rng.integers(len(street.roads)))]
            side, way = int(rng.choice((-1, 1))), int(rng.choice((-1, 1)))
            out = road.half_width + street.verge + rng.uniform(0.5 if street.verge else 1.15, street.pavement - 0.5)
            s = rng.uniform(10.0, road.curve.length - 10.0)
            if road is self.road:
                s = float(np.clip(self.near + rng.uniform(-40.0, 90.0), 10.0, road.curve.length - 10.0))
            if road.clear_of_junctions(np.array([s]))[0] < 6.0:
                continue
            walking = rng.random() < 0.8
            pace = Pace((0.0,), (rng.uniform(0.9, 1.7),)) if walking else STILL
            turned = 0.0 if walking else float(rng.uniform(-np.pi, np.pi))
            self._add(Actor(models.pedestrian(rng, walking), Motion(road.curve, side * out, s, way, pace, turned)))

    def _crossing_people(self, line: float) -> None:
        """Add people on the zebra crossing behind a stop line."""
        rng, road = self.rng, self.road
        low, high = min(road.crossings, key=lambda c: abs(c[0] - line))
        for _ in range(int(rng.integers(1, 5))):
            x, y, heading = (float(v) for v in road.curve.point(rng.uniform(low + 0.4, high - 0.4)))
            across = Curve((x, y, heading + np.pi / 2), (1.0,), (0.0,))
            pace = Pace((0.0,), (rng.uniform(1.0, 1.6),))
            start = float(rng.uniform(-road.half_width - 2.0, road.half_width))
            self._add(Actor(models.pedestrian(rng), Motion(across, 0.0, start, int(rng.choice((-1, 1))), pace)))

    def cyclists(self) -> None:
        """Add cyclists near the kerb and parked bicycles on the pavement."""
        rng, road, street = self.rng, self.road, self.place.street
        edge = road.lanes * road.lane_width - 0.45
        for _ in range(int(rng.integers(0, 4))):
            way = int(rng.choice((-1, 1)))
            s = float(self.near + rng.uniform(-30.0, 70.0))
            pace = Pace((0.0,), (rng.uniform(3.0, 5.5),)) if self.ego.pace is not STILL else STILL
            self._add(Actor(models.bicycle(rng), Motion(road.curve, -road.hand * way * edge, s, way, pace)))
        for _ in range(int(rng.integers(0, 5))):
            side, s = int(rng.choice((-1, 1))), float(self.near + rng.uniform(-40.0, 80.0))
            if road.clear_of_junctions(np.array([s]))[0] > 3.0:
                out = road.half_width + street.frontage - 0.5
                still = Motion(road.curve, side * out, s, 1, STILL, float(rng.normal(0, 0.2)))
                self._add(Actor(models.bicycle(rng, rider=False), still, parked=True))

    def roadworks(self) -> None:
        """Add, in some scenes, barriers and cones along a stretch of kerb."""
        rng, road = self.rng, self.road
        if rng.random() > 0.45:
            return
        side, s = int(rng.choice((-1, 1))), float(self.near + rng.uniform(15.0, 60.0))
        out = side * (road.half_width - (1.2 if road.parking else -0.35))  # clear of moving traffic
        for i in range(int(rng.integers(3, 9))):
            spot = s + 2.15 * i
            if road.clear_of_junctions(np.array([spot]))[0] > 0.0:
                self._add(Actor(models.barrier(rng), Motion(road.curve, out, spot, 1, STILL, np.pi / 2)))
        for i in range(int(rng.integers(2, 6))):
            spot = s - 3.0 - 2.5 * i
            if road.clear_of_junctions(np.array([spot]))[0] > 0.0:
                shift = -side * 0.1 * i
                self._add(Actor(models.traffic_cone(rng), Motion(road.curve, out - shift, spot, 1, STILL)))

    def left_standing(self, rng: np.random.Generator) -> None:
        """Add, in some scenes, parked trailers and excavators, at the kerb or on the pavement."""
        road, street = self.road, self.place.street
        for make in (models.trailer, models.excavator):
            for side in rng.permutation((-1, 1))[: int(rng.integers(0, 3))]:
                s = float(self.near + rng.uniform(-25.0, 45.0))
                model = make(rng)
                if road.clear_of_junctions(np.array([s]))[0] > model.size[0] / 2:
                    direction = int(-side * road.hand)
                    edge = road.half_width + (0.0 if road.parking else street.frontage)
                    out = side * (edge - model.size[1] / 2 - 0.1)
                    self._add(Actor(model, Motion(road.curve, out, s, direction, STILL), parked=True))
