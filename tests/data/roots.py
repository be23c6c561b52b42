"""Small roots in nuScenes format, written by hand: one drive, random poses and calibration, noise for pictures."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

VERSION = "v1.0-mini"
LIDAR = "LIDAR_TOP"
START = 1_532_402_927_000_000


def write_root(
    root: Path,
    *,
    scenes: Sequence[str] = ("scene-0061",),
    cameras: Sequence[str] = ("CAM_FRONT", "CAM_BACK"),
    lidar: bool = True,
    samples: int = 6,
    between: int = 0,
    period: float = 0.5,
    size: tuple[int, int] = (72, 128),
    seed: int = 0,
) -> Path:
    """Write all tables and files.

    Args:
        root: The folder to make.
        scenes: Names of scenes, a minute apart.
        cameras: Channels; each fires a little after the one before.
        lidar: Whether there is a LIDAR_TOP.
        samples: Samples a scene.
        between: Sweeps of every sensor between two samples, and after the last.
        period: Seconds between samples.
        size: Height and width of the images.
        seed: Of everything random.

    Returns:
        The root.
    """
    rng = np.random.default_rng(seed)
    channels = ([LIDAR] if lidar else []) + list(cameras)
    tables = {name: [] for name in ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor")}
    tables["sensor"] = [
        {"token": f"sensor-{c}", "channel": c, "modality": "lidar" if c == LIDAR else "camera"} for c in channels
    ]
    for number, scene in enumerate(scenes):
        tokens = [f"{scene}-sample-{i}" for i in range(samples)]
        tables["scene"].append(
            {
                "token": scene,
                "name": scene,
                "log_token": "log",
                "nbr_samples": samples,
                "first_sample_token": tokens[0],
                "last_sample_token": tokens[-1],
                "description": "",
            }
        )
        for i, token in enumerate(tokens):
            time = START + round((60 * number + i * period) * 1e6)
            links = {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < samples else ""}
            tables["sample"].append({"token": token, "timestamp": time, "scene_token": scene, **links})
        for place, channel in enumerate(channels):
            _write_sensor(root, tables, rng, scene, channel, place, tokens, between, period, size)
    _write_tables(root, tables)
    return root


def edit_table(root: Path, name: str, edit: Callable[[list[dict]], list[dict]]) -> None:
    """Replace a table by what ``edit`` makes of it."""
    path = root / VERSION / f"{name}.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def file_of(root: Path, channel: str, number: int) -> Path:
    """The file of a sensor's record by time."""
    records = json.loads((root / VERSION / "sample_data.json").read_text())
    names = [record["filename"] for record in records if f"/{channel}/" in record["filename"]]
    return root / names[number]


def _write_sensor(root, tables, rng, scene, channel, place, tokens, between, period, size):
    calibration = f"{scene}-{channel}-calibration"
    focal = float(rng.uniform(0.6, 1.2) * size[1])
    intrinsics = [[focal, 0.0, size[1] / 2 + 1.3], [0.0, focal, size[0] / 2 - 2.1], [0.0, 0.0, 1.0]]
    tables["calibrated_sensor"].append(
        {
            "token": calibration,
            "sensor_token": f"sensor-{channel}",
            "translation": rng.normal(size=3).tolist(),
            "rotation": rng.normal(size=4).tolist(),
            "camera_intrinsic": [] if channel == LIDAR else intrinsics,
        }
    )
    samples = {sample["token"]: sample["timestamp"] for sample in tables["sample"]}
    step = period / (between + 1)
    for i in range(len(tokens) * (between + 1)):
        sample, after = divmod(i, between + 1)
        # A sweep belongs to the sample that follows it; those at the end belong to the last.
        token = tokens[min(sample + (after > 0), len(tokens) - 1)]
        time = samples[tokens[0]] + round((i * step + 0.011 * place) * 1e6)
        kind = "samples" if after == 0 else "sweeps"
        name = f"{kind}/{channel}/{scene}__{time}." + ("pcd.bin" if channel == LIDAR else "jpg")
        _write_file(root / name, rng, size)
        record = f"{scene}-{channel}-{i}"
        tables["ego_pose"].append(
            {
                "token": record,
                "timestamp": time,
                "translation": rng.normal(loc=(1000 + 4 * i, 600 + 2 * i, 0)).tolist(),
                "rotation": rng.normal(size=4).tolist(),
            }
        )
        tables["sample_data"].append(
            {
                "token": record,
                "sample_token": token,
                "ego_pose_token": record,
                "calibrated_sensor_token": calibration,
                "timestamp": time,
                "is_key_frame": after == 0,
                "fileformat": "pcd" if channel == LIDAR else "jpg",
                "height": 0 if channel == LIDAR else size[0],
                "width": 0 if channel == LIDAR else size[1],
                "filename": name,
                "prev": "",
                "next": "",
            }
        )


def _write_file(path, rng, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bin":
        rng.normal(scale=20, size=(int(rng.integers(20, 40)), 5)).astype("<f4").tofile(path)
    else:
        coarse = rng.integers(0, 256, size=(size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size[1], size[0])).save(path, quality=90)


def _write_tables(root, tables):
    folder = root / VERSION
    folder.mkdir(parents=True)
    (root / "maps").mkdir()
    Image.new("L", (8, 8)).save(root / "maps/map.png")
    tables["log"] = [
        {"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": "singapore-onenorth"}
    ]
    tables["map"] = [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "maps/map.png"}]
    for name in ("category", "attribute", "visibility", "instance", "sample_annotation"):
        tables[name] = []
    for name, records in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(records))
