"""Encoder folders and weight files that others might hand on: mutated, malformed, hostile.

``for case in cases(folder, count=300): ...`` writes one after the other. What a case would run if it were unpickled or
followed makes the file ``case.canary``; whoever reads the case must end in a :class:`mim4d.errors.UserError` or in a
working encoder, and no canary may be there.
"""

import copy
import json
import os
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file


@dataclass(frozen=True)
class Case:
    """One folder with ``config.json`` and ``model.safetensors``, and one file ``weights.pth`` in it."""

    name: str
    folder: Path
    canary: Path
    of_config: bool
    """Whether it is config.json that was changed, and not the weights."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / "weights.pth"


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.canary),))


VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 10**9, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "a", "../../etc/passwd", "hf-hub:org/name", "\x1b[31mred\x1b[0m", "a\nb", "a\x00b", "\ud800", "‮abc"),
    *("x" * 100_000, [], [1], [3, 64, 64], [3, -1, 64], [3, "a", None], [[]], {}, {"a": 1}, {"": {}}, [None] * 5),
]
ARGUMENTS = [
    *("checkpoint_path", "given_weights", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),
    *("scriptable", "exportable", "no_jit", "features_only", "out_indices", "feature_cls", "feature_cfg", "pruned"),
    *("model_cfg", "kwargs_filter", "pretrained_strict", "pretrained_filter_fn", "block_args", "device", "dtype"),
    *("depths", "dims", "layers", "channels", "kernel_sizes", "num_classes", "in_chans", "act_layer", "norm_layer"),
    *("stem_type", "patch_size", "output_stride", "global_pool", "ls_init_value", "drop_rate", "head_hidden_size"),
]
PRETRAINED = [
    *("input_size", "mean", "std", "pool_size", "first_conv", "classifier", "num_classes", "crop_pct", "interpolation"),
    *("license", "tag", "file", "url", "hf_hub_id", "hf_hub_filename", "state_dict", "custom_load", "source"),
    *("architecture", "label_names", "test_input_size", "fixed_input_size", "origin_url"),
]
PROVENANCE = [
    *("version", "sha256", "init", "data", "dataset", "split", "steps", "clips_per_step", "settings", "measured"),
    *("converted_from", "converted_from_sha256"),
]
ARCHITECTURES = [
    *("vit_tiny_patch16_224", "mim4d_convnext_atto", "resnet18", "convnext_base", "hf-hub:org/name", "local-dir:/etc"),
    *("../convnext_atto", "convnext_atto.demo", "", "CONVNEXT_ATTO", "convnext\x1b[2J", "nothing", "test_resnet"),
]


def cases(folder: Path, good: Path, *, count: int, seed: int = 0) -> Iterator[Case]:
    """Mutated encoder folders, the same for the same seed.

    Args:
        folder: Where to write them.
        good: An encoder folder of ours, to be mutated.
        count: How many.
        seed: Of the mutations.
    """
    source = random.Random(seed)
    kinds = list(KINDS)
    for index in range(count):
        mutate = kinds[index % len(kinds)]
        case = Case(
            name=f"{index:03}-{mutate.__name__.strip('_')}",
            folder=folder / f"{index:03}",
            canary=folder / f"canary-{index:03}",
            of_config=mutate in OF_CONFIG,
        )
        case.folder.mkdir(parents=True)
        config = json.loads((good / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(good / "model.safetensors")
        if source.random() < 0.8:
            config["mim4d"].pop("sha256")  # so that more than the checksum is looked at
        save_file(tensors, case.folder / "model.safetensors", metadata={"format": "pt"})
        torch.save({"state_dict": tensors, "epoch": 3}, case.checkpoint)
        text = mutate(case, config, tensors, source)
        (case.folder / "config.json").write_bytes(text if text is not None else _dump(config))
        yield case


def _dump(config: Any) -> bytes:
    return json.dumps(config).encode("utf-8", "surrogatepass")


# --- config.json -----------------------------------------------------------------------------------------------------

Mutation = Callable[[Case, dict[str, Any], dict[str, torch.Tensor], random.Random], bytes | None]


def _value(case: Case, config: Any, tensors: Any, source: random.Random) -> None:
    """One entry, at any depth, becomes another value."""
    place = config
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = source.choice(keys)
        if isinstance(place[key], (dict, list)) and place[key] and source.random() < 0.7:
            place = place[key]
            continue
        place[key] = copy.deepcopy(source.choice(VALUES))
        return


def _entry(case: Case, config: Any, tensors: Any, source: random.Random) -> None:
    """An entry that is read gets another value or goes."""
    group, names = source.choice(
        [
            (config, ["architecture", "num_classes", "model_args", "pretrained_cfg", "mim4d"]),
            (config["pretrained_cfg"], PRETRAINED),
            (config["mim4d"], PROVENANCE),
        ]
    )
    name = source.choice(names)
    if source.random() < 0.2:
        group.pop(name, None)
    else:
        group[name] = copy.deepcopy(source.choice(VALUES))


def _argument(case: Case, config: Any, tensors: Any, source: random.Random) -> None:
    """An argument for timm, often one that names a pickle."""
    evil = case.folder / "evil.pth"
    torch.save({"state_dict": Evil(case.canary)}, evil)
    name = source.choice(ARGUMENTS)
    value = str(evil) if source.random() < 0.4 else copy.deepcopy(source.choice(VALUES))
    config.setdefault("model_args", {})[name] = value


def _checkpoint_path(case: Case, config: Any, tensors: Any, source: random.Random) -> None:
    evil = case.folder / source.choice(["evil.pth", "pytorch_model.bin", "model.pt"])
    evil.write_bytes(pickle.dumps(Evil(case.canary), protocol=2))
    config.setdefault("model_args", {})["checkpoint_path"] = str(evil)


def _source_of_weights(case: Case, config: Any, tensors: Any, source: random.Random) -> None:
    """timm's entries for where weights are."""
    evil = case.folder / "pytorch_model.bin"
    torch.save(Evil(case.canary), evil)
    about = config["pretrained_cfg"]
    about[source.choice(["file", "url", "hf_hub_id"])] = source.choice([str(evil), evil.as_uri(), str(case.folder)])
    about["custom_load"] = source.choice([True, False, "hf"])
    about["source"] = source.choice(["local-dir", "hf-hub", "", None])


def _architecture(case: Case, config: Any, tensors: Any, source: random.Random) -> None:
    config["architecture"] = source.choice(ARCHITECTURES)


def _text(case: Case, config: Any, tensors: Any, source: random.Random) -> bytes:
    """Bytes cut, flipped, doubled, or something else altogether."""
    data = bytearray(_dump(config))
    how = source.randrange(8)
    if how == 0:
        return bytes(data[: source.randrange(len(data))])
    if how == 1:
        for _ in range(source.randrange(1, 20)):
            data[source.randrange(len(data))] = source.randrange(256)
        return bytes(data)
    if how == 2:
        return b"[" * source.choice([100, 10_000, 1_000_000])
    if how == 3:
        return b'{"architecture":' * 200_000
    return source.choice([b"", b"null", b"[]", b'"a"', b"\xff\xfe{}", bytes(data) * 2, b"1" * 5000, b" " * 2_000_000])


# --- weights ---------------------------------------------------------------------------------------------------------


def _dtype(case: Case, config: Any, tensors: dict[str, torch.Tensor], source: random.Random) -> None:
    """One or all tensors in another type."""
    dtype = source.choice(
        [
            *(torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn),
            *(torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64),
        ]
    )
    chosen = list(tensors) if source.random() < 0.5 else [source.choice(list(tensors))]
    changed = {name: tensor.to(dtype) if name in chosen else tensor for name, tensor in tensors.items()}
    save_file(changed, case.folder / "model.safetensors")
    torch.save(changed, case.checkpoint)


def _values(case: Case, config: Any, tensors: dict[str, torch.Tensor], source: random.Random) -> None:
    """A NaN, an infinity, or what is infinite in float32."""
    name = source.choice([name for name, tensor in tensors.items() if tensor.is_floating_point()])
    changed = {**tensors, name: tensors[name].double()}
    changed[name].view(-1)[0] = source.choice([float("nan"), float("inf"), -float("inf"), 1e300])
    save_file(changed, case.folder / "model.safetensors")
    torch.save(changed, case.checkpoint)


def _names(case: Case, config: Any, tensors: dict[str, torch.Tensor], source: random.Random) -> None:
    """Tensors missing, more, renamed, wrapped or of other shapes."""
    name = source.choice(list(tensors))
    changed = dict(tensors)
    tensor = changed.pop(name)
    how = source.randrange(7)
    if how == 1:
        changed[name + "\x1b[31m\nx"] = tensor
    elif how == 2:
        changed[name] = tensor.flatten()[:-1].clone()
    elif how == 3:
        changed[name] = tensor[None].clone()
    elif how == 4:
        changed = {f"a.{n}": t.clone() for n, t in tensors.items()} | {f"b.{n}": t.clone() for n, t in tensors.items()}
    elif how == 5:
        prefix = source.choice(["module.", "_orig_mod.", "model.", "img_backbone.", "model.module._orig_mod.backbone."])
        changed = {prefix + n: t for n, t in tensors.items()}
    elif how == 6:
        changed[name] = torch.zeros(0)
    save_file(changed, case.folder / "model.safetensors")
    torch.save(source.choice([changed, {"model": changed}, {"module": changed, "arch": "x"}]), case.checkpoint)


def _layout(case: Case, config: Any, tensors: dict[str, torch.Tensor], source: random.Random) -> None:
    """Sparse, quantised, nested and meta tensors, and tensors that are larger than what is stored of them."""
    matrix = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    tensor = tensors[matrix]
    other = source.choice(
        [
            lambda: tensor.to_sparse(),
            lambda: tensor.flatten(1).to_sparse_csr(),
            lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
            lambda: torch.nested.nested_tensor([tensor[0], tensor[1]]),
            lambda: tensor.to("meta"),
            lambda: tensor[:1, :1, :1, :1].expand(10**6, 10**6, 10**3, 1),
            lambda: torch.nn.Parameter(tensor),
        ]
    )()
    torch.save({"state_dict": {**tensors, matrix: other}}, case.checkpoint)


def _pickle(case: Case, config: Any, tensors: dict[str, torch.Tensor], source: random.Random) -> None:
    """A pickle that runs code, under either name; tensors and code side by side."""
    evil = Evil(case.canary)
    content = source.choice([evil, {"state_dict": tensors, "meta": evil}, {"state_dict": {**tensors, "a": evil}}])
    for file in (case.checkpoint, case.folder / "model.safetensors"):
        if source.random() < 0.5:
            torch.save(content, file)
        else:
            file.write_bytes(pickle.dumps(content if content is evil else [evil], protocol=source.choice([0, 2, 4])))


def _bytes(case: Case, config: Any, tensors: dict[str, torch.Tensor], source: random.Random) -> None:
    """Files cut, with bytes flipped, empty or of zeros."""
    for file in (case.checkpoint, case.folder / "model.safetensors"):
        data = bytearray(file.read_bytes())
        how = source.randrange(5)
        if how == 0:
            data = data[: source.randrange(len(data))]
        elif how == 1:
            for _ in range(source.randrange(1, 50)):
                data[source.randrange(min(len(data), 4000))] = source.randrange(256)
        elif how == 2:
            data = bytearray(source.choice([b"", b"\0" * 100, b"PK\3\4" + b"\0" * 100, b"\x80\x02."]))
        elif how == 3:
            data[:8] = source.choice([2**63 - 1, 2**40, 0, len(data)]).to_bytes(8, "little")
        else:
            data = data * 2
        file.write_bytes(data)


def _table(case: Case, config: Any, tensors: dict[str, torch.Tensor], source: random.Random) -> None:
    """Checkpoints of other forms."""
    content = source.choice(
        [
            *(None, [], {}, 3, "text", torch.zeros(3), {"state_dict": None}, {"state_dict": {}}, {"model": [tensors]}),
            *({1: torch.zeros(1)}, {"state_dict": {"a": 3}}, {"state_dict": {"state_dict": {"model": tensors}}}),
            *({**tensors, "n_averaged": torch.tensor(3)}, [tensors], {b"a": torch.zeros(1)}, {"a": tensors}),
        ]
    )
    torch.save(content, case.checkpoint)
    (case.folder / "model.safetensors").write_bytes(save({"a": torch.zeros(1)}) if source.random() < 0.5 else b"{}")


def _links(case: Case, config: Any, tensors: Any, source: random.Random) -> None:
    """Links out of the folder."""
    secret = case.folder.parent / "secret"
    secret.write_text("a secret that is nobody's business")
    for name in source.sample(["model.safetensors", "README.md", "weights.pth"], 2):
        (case.folder / name).unlink(missing_ok=True)
        (case.folder / name).symlink_to(source.choice([secret, Path("/dev/null"), Path("/nowhere"), case.folder]))


OF_CONFIG = (_value, _entry, _argument, _checkpoint_path, _text, _source_of_weights, _architecture)
KINDS: tuple[Mutation, ...] = (
    *(_value, _entry, _argument, _dtype, _checkpoint_path, _names, _text, _pickle, _values, _bytes),
    *(_source_of_weights, _layout, _architecture, _table, _links),
)
