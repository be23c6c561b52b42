"""Export of a backbone to ONNX and to torch.export, verified before anything is written: ``mim4d-hub export``."""

import argparse
import importlib.util
import io
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from .backbones.named import open_backbone
from .backbones.pyramid import pyramid_of
from .errors import UserError, printable
from .flags import text
from .io.files import write_bytes
from .io.tensors import first_line
from .version import __version__

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}
"""Largest difference from torch in float32, as a fraction of the map's largest value; absolute for maps below 1."""
OPSET = 18
"""The oldest version of the operators that torch writes without conversion."""
INPUT = "images"
CAMERAS = 6
"""Batch size that is verified and timed with a dynamic batch: the cameras of a nuScenes rig."""


class Maps(nn.Module):
    """A backbone whose only output is its pyramid: one map per stride, coarsest last."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid_of(backbone)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [N, 3, H, W] -> maps [N, C_i, H/s_i, W/s_i]."""
        maps = self.backbone(images)
        return tuple(maps[index] for index in self.pyramid.indices)

    def names(self) -> list[str]:
        """Names of the outputs: ``stride4``, ``stride8``, ..."""
        return [f"stride{stride}" for stride in self.pyramid.strides]


@dataclass(frozen=True, kw_only=True)
class Verified:
    """An exported model that computes what torch computes."""

    content: bytes
    """Bytes of the file."""
    difference: float
    """Largest difference from torch in float32."""
    largest: float
    """Largest value of torch's maps."""
    seconds: tuple[float, float]
    """Shortest time of one batch: of the exported model, and of torch."""
    batch: int
    """Images per batch, for the times."""
    operators: tuple[str, ...] = ()
    """Operators of an ONNX graph."""


def trace(model: Maps, size: tuple[int, int], *, dynamic_batch: bool, half: bool) -> Any:
    """Trace a backbone with ``torch.export``.

    Args:
        model: The backbone; converted to float16 in place for ``half``.
        size: (H, W) of the images, pixels.
        dynamic_batch: Whether the batch may have any size; otherwise it is 1.
        half: Whether weights, images and maps are float16.

    Raises:
        UserError: If torch cannot trace the model.
    """
    images = _images(2 if dynamic_batch else 1, size)
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None
    if half:
        model, images = model.half(), images.half()
    try:
        with _quiet():
            return torch.export.export(model, (images,), dynamic_shapes=shapes)
    except Exception as error:  # the tracer raises all kinds
        batch = " with a dynamic batch" if dynamic_batch else ""
        raise UserError(f"torch cannot export this model{batch}: {first_line(error)}") from error


def to_onnx(program: Any, model: Maps, reference: nn.Module, *, opset: int, about: dict[str, str]) -> Verified:
    """Convert a traced backbone to ONNX and verify it with onnxruntime on the CPU.

    Args:
        program: Result of :func:`trace`.
        model: What was traced.
        reference: The same backbone in float32.
        opset: Version of the ONNX operators.
        about: Metadata of the file.

    Raises:
        UserError: If a package is missing, an operator is not a standard one, or the maps differ from torch's.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    import onnx
    import onnxruntime

    (images,) = program.example_inputs[0]
    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                (images,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                external_data=False,
                input_names=[INPUT],
                output_names=model.names(),
            )
        assert made is not None
        proto = made.model_proto
        _strip(proto)
        onnx.helper.set_model_props(proto, about)
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # of torch, onnxscript or onnx
        raise UserError(f"torch cannot convert this model to ONNX opset {opset}: {first_line(error)}") from error
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    custom = sorted({f"{node.domain}.{node.op_type}" for node in _nodes(proto) if node.domain not in ("", "ai.onnx")})
    if custom:
        raise UserError(f"the graph has operators outside the ONNX standard: {', '.join(custom)}")
    if versions.get("") != opset:
        raise UserError(f"`opset` {opset}: torch can convert this model to opset {versions.get('')} only")
    content = proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as torch, so that times can be compared
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Sequence[Tensor]:
        return [torch.from_numpy(found) for found in session.run(model.names(), {INPUT: images.numpy()})]

    operators = tuple(sorted({node.op_type for node in _nodes(proto)}))
    return _verify(run, content, images, reference, operators, "onnxruntime")


def to_torch_export(program: Any, reference: nn.Module) -> Verified:
    """Serialise a traced backbone, read it again and verify it.

    Args:
        program: Result of :func:`trace`.
        reference: The same backbone in float32.

    Raises:
        UserError: If the maps differ from torch's.
    """
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    run = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return _verify(run, buffer.getvalue(), program.example_inputs[0][0], reference, (), "torch.export")


def _verify(
    run: Callable[[Tensor], Sequence[Tensor]],
    content: bytes,
    example: Tensor,
    reference: nn.Module,
    operators: tuple[str, ...],
    runtime: str,
) -> Verified:
    """Compare an exported model with torch, for a batch of one and of several images, and time both.

    Raises:
        UserError: If a map is not finite, or differs by more than :data:`TOLERANCE`.
    """
    size = (example.shape[-2], example.shape[-1])
    difference = largest = 0.0
    images = example
    with torch.inference_mode():
        for batch in (1, CAMERAS) if len(example) > 1 else (1,):
            images = _images(batch, size).to(example.dtype)
            for found, expected in zip(run(images), reference(images.float()), strict=True):
                worst, scale = float((found.float() - expected).abs().max()), float(expected.abs().max())
                if not worst <= TOLERANCE[example.dtype] * max(1.0, scale):  # NaN too
                    raise UserError(
                        f"{runtime} differs from torch by {worst:.2g} in a map with values up to {scale:.2g}, expected "
                        f"at most {TOLERANCE[example.dtype] * max(1.0, scale):.2g}; nothing was written"
                    )
                difference, largest = max(difference, worst), max(largest, scale)
        seconds = _fastest(lambda: run(images), lambda: reference(images.float()))
    return Verified(
        content=content,
        difference=difference,
        largest=largest,
        seconds=seconds,
        batch=len(images),
        operators=operators,
    )


def _images(batch: int, size: tuple[int, int]) -> Tensor:
    """Random normalised images [batch, 3, H, W], always the same."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def _fastest(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float]:
    """Return the shortest of three runs of each in seconds; runs alternate, so that other load affects both."""

    def timed(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    pairs = [(timed(first), timed(second)) for _ in range(3)]
    return min(a for a, _ in pairs), min(b for _, b in pairs)


def _strip(proto: Any) -> None:
    """Remove what torch notes about its source files, which are paths of this machine."""
    for part in (*_nodes(proto), *proto.graph.value_info, *proto.graph.initializer, *proto.graph.input, proto.graph):
        del part.metadata_props[:]
    for node in _nodes(proto):
        node.ClearField("doc_string")


def _nodes(proto: Any) -> Iterator[Any]:
    """All nodes of a graph and of its functions."""
    yield from proto.graph.node
    for function in proto.functions:
        yield from function.node


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's progress and warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _require(*modules: str) -> None:
    """Check that packages of the extra ``export`` are installed."""
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise UserError(f"no module {missing[0]}: pip install 'mim4d[export]'")


def metadata_of(model: Maps, source: str) -> dict[str, str]:
    """Return the metadata of an exported file: outputs, normalisation and licence, as text by name.

    Args:
        model: The backbone.
        source: Where its weights are from.
    """
    normalise = resolve_model_data_config(model.backbone)
    pyramid = zip(model.names(), model.pyramid.strides, model.pyramid.channels, strict=True)
    outputs = [{"name": name, "stride": stride, "channels": channels} for name, stride, channels in pyramid]
    config = model.backbone.pretrained_cfg
    return {
        "mim4d.model": config["architecture"],
        "mim4d.source": Path(source).name if Path(source).exists() else source,  # no path of this machine
        "mim4d.outputs": json.dumps(outputs),
        "mim4d.input": "RGB from 0 to 1, minus mean, divided by std",
        "mim4d.mean": json.dumps(list(normalise["mean"])),
        "mim4d.std": json.dumps(list(normalise["std"])),
        "mim4d.license": config.get("license") or "not stated",
        "mim4d.version": __version__,
    }


def trtexec(file: Path, size: tuple[int, int], *, dynamic_batch: bool, half: bool) -> str:
    """Return the command that builds a TensorRT engine from an ONNX file.

    >>> trtexec(Path("base.onnx"), (256, 704), dynamic_batch=False, half=False)
    'trtexec --onnx=base.onnx --saveEngine=base.engine'
    """
    words = ["trtexec", f"--onnx={file}", f"--saveEngine={file.with_suffix('.engine')}"]
    if half:
        words.append("--stronglyTyped")  # the types of the file, not TensorRT's choice
    if dynamic_batch:
        shape = f"x3x{size[0]}x{size[1]}"
        words += [
            f"--{name}Shapes={INPUT}:{batch}{shape}"
            for name, batch in (("min", 1), ("opt", CAMERAS), ("max", 2 * CAMERAS))
        ]
    return " ".join(words)


def add_command(commands: Any) -> None:
    """Add ``export`` to the parser of ``mim4d-hub``."""
    parser = commands.add_parser(
        "export",
        help="write a backbone as ONNX or torch.export file, verified against torch",
        description="Export a backbone with its feature maps as outputs, one per stride. The file is compared with "
        "torch before it is written. Needs pip install 'mim4d[export]'.",
        example="mim4d-hub export runs/demo encoder.onnx --size 256 704",
    )
    parser.add_argument(
        "backbone", type=text, metavar="BACKBONE", help="a run, an encoder folder, a timm name, or ORG/NAME on the Hub"
    )
    parser.add_argument("out", type=_file(".onnx"), nargs="?", metavar="OUT.onnx", help="the ONNX file")
    parser.add_argument("--torch-export", type=_file(".pt2"), metavar="OUT.pt2", help="a file of torch.export.save")
    parser.add_argument(
        "--size", type=_pixels, nargs=2, required=True, metavar=("H", "W"), help="height and width of the images"
    )
    parser.add_argument(
        "--opset", type=int, default=OPSET, metavar="N", help="version of the ONNX operators (default: %(default)s)"
    )
    parser.add_argument("--dynamic-batch", action="store_true", help="accept any batch size; without it, the size is 1")
    parser.add_argument("--fp16", action="store_true", help="store weights, images and maps in float16")
    parser.set_defaults(run=_export)


def _file(suffix: str) -> Callable[[str], Path]:
    def read(value: str) -> Path:
        path = Path(text(value)).expanduser()
        if path.suffix != suffix:
            raise argparse.ArgumentTypeError(f"{value}: expected a file name that ends in {suffix}")
        return path

    return read


def _pixels(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 8192:
        raise argparse.ArgumentTypeError(f"{value}: expected a number of pixels from 1 to 8192")
    return int(value)


def _export(given: argparse.Namespace) -> None:
    if not given.out and not given.torch_export:
        raise UserError("nothing to write: give OUT.onnx, or --torch-export OUT.pt2")
    if given.out:
        _require("onnx", "onnxscript", "onnxruntime")
    size = (given.size[0], given.size[1])
    reference = Maps(open_backbone(given.backbone, size))
    model = Maps(open_backbone(given.backbone, size)) if given.fp16 else reference
    about = metadata_of(reference, given.backbone)
    program = trace(model, size, dynamic_batch=given.dynamic_batch, half=given.fp16)
    files: list[tuple[Path, str, Verified]] = []
    if given.out:
        files.append((given.out, "onnxruntime", to_onnx(program, model, reference, opset=given.opset, about=about)))
    if given.torch_export:
        files.append((given.torch_export, "torch.export", to_torch_export(program, reference)))
    kind = "float16" if given.fp16 else "float32"
    print(printable(f"{about['mim4d.model']}, licence {about['mim4d.license']}"))
    batch, (height, width) = "batch" if given.dynamic_batch else 1, size
    print(f"input {INPUT} [{batch}, 3, {height}, {width}] {kind}: {about['mim4d.input']}")
    print(f"mean {about['mim4d.mean']}, std {about['mim4d.std']}")
    for name, stride, channels in zip(
        reference.names(), reference.pyramid.strides, reference.pyramid.channels, strict=True
    ):
        print(f"output {name} [{batch}, {channels}, {height // stride}, {width // stride}]")
    for file, runtime, verified in files:
        write_bytes(file, verified.content)
        print(printable(f"written: {file} ({len(verified.content):,} bytes)"))
        print(f"largest difference from torch: {verified.difference:.2g} (values up to {verified.largest:.2g})")
        ours, torchs = verified.seconds
        print(f"batch {verified.batch} on this CPU: {runtime} {ours:.3g} s, torch in float32 {torchs:.3g} s")
    if given.out:
        print(f"opset {given.opset}: {', '.join(files[0][2].operators)}")
        print(printable(trtexec(given.out, size, dynamic_batch=given.dynamic_batch, half=given.fp16)))
