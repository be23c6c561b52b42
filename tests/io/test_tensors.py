"""Files of tensors: what is read, and what is refused by name."""

import argparse
import sys
import types

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import mim4d  # noqa: F401  # registers the encoders
from mim4d.errors import WeightsError, printable
from mim4d.hub.load import load_weights
from mim4d.hub.sources import Weights
from mim4d.io.tensors import misfit, read_tensors

SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 24))


@pytest.fixture
def encoder():
    return timm.create_model("mim4d_convnext_atto", num_classes=0, **SMALL)


@pytest.fixture
def plain():
    """Weights that are not the encoder's, by timm's names."""
    torch.manual_seed(7)
    return timm.create_model("convnext_atto", num_classes=0, **SMALL).state_dict()


def before(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


WRAPPINGS = {
    "bare": lambda t: t,
    "DDP": lambda t: {"model": before("module.", t), "epoch": 3},
    "torch.compile": lambda t: before("_orig_mod.", t),
    "DDP of a compiled model": lambda t: before("module._orig_mod.", t),
    "a compiled DDP": lambda t: {"state_dict": before("_orig_mod.module.", t)},
    "SparK": lambda t: {"arch": "convnext_atto", "module": t, "is_pretrain": True},
    "SparK's whole model": lambda t: {"module": before("sparse_encoder.sp_cnn.", t) | {"mask_token": torch.zeros(3)}},
    "Lightning": lambda t: {"state_dict": before("model.", t) | {"loss.weight": torch.ones(2)}, "callbacks": {}},
    "Lightning, compiled": lambda t: {"state_dict": before("model._orig_mod.", t)},
    "an average": lambda t: {"n_averaged": torch.tensor(3), **before("module.", t)},
    "timm's script": lambda t: {
        "state_dict": {name: 0 * tensor for name, tensor in t.items()},
        "state_dict_ema": before("module.", t),
        "args": argparse.Namespace(model="convnext_atto"),
        "metric": np.float64(0.8),
    },
    "a compiled backbone of a detector": lambda t: {
        "state_dict": before("img_backbone._orig_mod.", t) | {"depth.backbone.stem.0.weight": torch.zeros(2)}
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_read_from_what_training_scripts_wrap_them_in(wrapping, encoder, plain, tmp_path):
    torch.save(WRAPPINGS[wrapping](plain), tmp_path / "weights.pth")
    tensors = read_tensors(tmp_path / "weights.pth")
    loaded = load_weights(encoder, Weights(tensors=tensors, source="weights.pth"))
    assert not loaded.missing
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in plain.items())


def test_wrapped_names_are_read_from_safetensors_too(encoder, plain, tmp_path):
    save_file(before("_orig_mod.", plain), tmp_path / "weights.safetensors")
    load_weights(encoder, Weights(tensors=read_tensors(tmp_path / "weights.safetensors"), source="weights"))
    assert torch.equal(encoder.state_dict()["stem.0.weight"], plain["stem.0.weight"])


def test_of_two_backbones_none_is_chosen(encoder, plain):
    both = before("student.backbone.", plain) | before("teacher.backbone.", plain)
    with pytest.raises(WeightsError, match=r"x holds several backbones, under student.backbone., teacher.backbone.: "):
        load_weights(encoder, Weights(tensors=both, source="x"))


def test_mmengines_history_buffers_are_read_past(tmp_path, monkeypatch, plain):
    """As mmengine pickles them: arrays, and methods by getattr. The classes are gone when the file is read."""

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.array([0.5, 0.25])
            self.statistics_methods = {"min": HistoryBuffer.min}

        def min(self):
            raise AssertionError("never called")

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = HistoryBuffer.__module__, "HistoryBuffer.min"
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setattr(sys.modules["mmengine.logging.history_buffer"], "HistoryBuffer", HistoryBuffer, raising=False)
        meta = {"epoch": 12, "seed": np.int64(3)}
        hub = {"log_scalars": {"train/loss": HistoryBuffer()}}
        content = {"meta": meta, "message_hub": hub, "state_dict": before("backbone.", plain)}
        torch.save(content, tmp_path / "epoch_12.pth")
    tensors = read_tensors(tmp_path / "epoch_12.pth")
    assert tensors.keys() == before("backbone.", plain).keys()


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_parameters_of_other_kinds_of_numbers_are_refused(dtype, encoder, plain):
    untouched = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    tensors = {**plain, "stem.0.weight": plain["stem.0.weight"].to(dtype)}
    with pytest.raises(WeightsError, match=r"stem\.0\.weight is \w+, expected float16, bfloat16, float32 or float64"):
        load_weights(encoder, Weights(tensors=tensors, source="x"))
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_numbers_of_other_precision_are_read(dtype, encoder, plain):
    tensors = {name: tensor.to(dtype) for name, tensor in plain.items()}
    load_weights(encoder, Weights(tensors=tensors, source="x"))
    assert torch.equal(encoder.state_dict()["stem.0.weight"], plain["stem.0.weight"].to(dtype).float())


def test_counters_are_integers():
    own = {"bn1.num_batches_tracked": torch.tensor(0)}
    assert not misfit(own, {"bn1.num_batches_tracked": torch.tensor(5, dtype=torch.int32)})
    for wrong in (torch.tensor(5.0), torch.tensor(True)):
        assert ", expected integers" in misfit(own, {"bn1.num_batches_tracked": wrong})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused(value, encoder, plain):
    tensors = {**plain, "stem.0.bias": plain["stem.0.bias"].double()}
    tensors["stem.0.bias"][1] = value  # 1e300 is finite until it is loaded as float32
    with pytest.raises(WeightsError, match=r"x: stem\.0\.bias holds NaN or infinity"):
        load_weights(encoder, Weights(tensors=tensors, source="x"))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda t: t.to_sparse(), r"sparse \(torch.sparse_coo\)"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised"),
        (lambda t: t.to("meta"), "without data"),
    ],
)
def test_tensors_that_are_not_dense_are_refused_by_name(made, told, tmp_path):
    torch.save({"good": torch.ones(2, 2), "bad": made(torch.ones(2, 2))}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=rf"weights\.pth: bad is {told}.*; expected a dense tensor"):
        read_tensors(tmp_path / "weights.pth")


def test_a_pickle_by_another_name_is_called_one(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="it is a pickle, not safetensors"):
        read_tensors(tmp_path / "model.safetensors")


def test_a_terminal_is_not_steered_by_what_is_printed():
    assert printable("plain, ö, 日本\nnext line") == "plain, ö, 日本\nnext line"
    assert printable("\x1b[31mred\x07 \u202e \ud800") == r"\x1b[31mred\x07 \u202e \ud800"
