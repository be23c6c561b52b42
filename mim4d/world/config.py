"""The settings of a synthetic world."""

from dataclasses import dataclass

from ..bounds import check_bounds
from ..errors import UserError
from ..settings import NO_SPLIT, SPLITS

PERIOD = 0.5
"""Seconds between key frames."""
LOOK = 3
"""Version of the renderer, increased when the same settings give other files than before."""
PLACES = (64, 16)
"""Largest number of different places in the scenes of the training and of the validation split."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """A synthetic world. The same settings give the same files."""

    scenes: int = 10
    """Scenes, about a fifth of them held out; v1.0-mini has names for 10, v1.0-trainval for 850, v1.0-test for 150."""
    keyframes: int = 12
    """Key frames per scene, 0.5 s apart (nuScenes: 40)."""
    scale: float = 0.25
    """Image size as a fraction of 1600x900 pixels; 0.25 gives 400x225."""
    camera_rate: float = 2.0
    """Images per second of each camera, Hz: 2 for key frames only, 12 as in nuScenes."""
    lidar_rate: float = 2.0
    """LiDAR sweeps per second, Hz: 2 for key frames only, 20 as in nuScenes."""
    seed: int = 0
    """Seed of the world."""

    def __post_init__(self) -> None:
        check_bounds(self, {"scenes": (1, 850), "keyframes": (1, 1000), "seed": (0, 2**63 - 1)}, "world.")
        if not 0.05 <= self.scale <= 1.0:
            raise ValueError(f"world.scale = {self.scale} must lie in 0.05 .. 1 (1 is 1600x900 pixels)")
        for name in ("camera_rate", "lidar_rate"):
            rate = getattr(self, name) * PERIOD
            if not 1 <= rate <= 20 or rate != round(rate):
                raise ValueError(f"world.{name} = {rate / PERIOD:g} must be a multiple of {1 / PERIOD:g} Hz up to 40")


DEMO_VERSION = "v1.0-trainval"
DEMO_WORLD = WorldConfig(scenes=32, keyframes=6)
"""The world of the demos of ``mim4d-pretrain`` and ``mim4d-eval``. It has many short scenes, because the temporal
decoder memorises eight long ones."""


def check_version(version: str) -> None:
    """Check that a world can have tables of this version.

    Raises:
        UserError: If it is not a version of nuScenes.
    """
    if version not in SPLITS:
        raise UserError(f"version = {version} is unknown: choose one of {', '.join(SPLITS)}")


def check_split(config: WorldConfig, version: str, split: str) -> None:
    """Check that a split, or each of several scenes separated by commas, has a scene in the world.

    Raises:
        UserError: If it has none.
    """
    from nuscenes.utils.splits import create_splits_scenes  # slow to import, so only here

    splits = create_splits_scenes()
    made = {name for name, _ in scene_names(version, config.scenes)}
    wanted = [name.strip() for name in split.split(",") if name.strip()]
    if len(wanted) == 1 and wanted[0] in splits:
        if made.isdisjoint(splits[wanted[0]]):
            raise UserError(
                f"split {split}: none of its scenes is in a world of {version} with `world.scenes` {config.scenes}"
            )
        return
    missing = [name for name in wanted if name not in made]
    if missing or not wanted:
        raise UserError(
            f"split {', '.join(missing) or '(empty)'}: neither a split ({', '.join(sorted(splits))}) nor a scene "
            f"of a world of {version} with `world.scenes` {config.scenes}"
        )


def scene_names(version: str, count: int) -> list[tuple[str, int]]:
    """Names from nuScenes' official splits, and the place each scene happens in.

    Of v1.0-mini and v1.0-trainval about a fifth (at least one, from two scenes on) belong to the validation split.

    Raises:
        UserError: If the splits have fewer scenes.
    """
    from nuscenes.utils.splits import create_splits_scenes  # slow to import, so only here

    splits = create_splits_scenes()
    train, val = (splits.get(name, []) for name in SPLITS[version])
    if count > len(train) + len(val):
        raise UserError(f"world.scenes = {count} must be at most {len(train) + len(val)}, the names that {version} has")
    held_out = max(int(count >= 2), round(count / 5)) if SPLITS[version][1] != NO_SPLIT else 0
    held_out = max(min(held_out, len(val)), count - len(train))
    chosen = [(name, i % PLACES[0]) for i, name in enumerate(train[: count - held_out])]
    return chosen + [(name, PLACES[0] + i % PLACES[1]) for i, name in enumerate(val[:held_out])]
