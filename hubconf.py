"""Entry points of torch.hub: ``encoder`` for weights, and one per architecture.

torch.hub.load("CLONE", "encoder", "runs/demo", source="local")
torch.hub.load("CLONE", "mim4d_convnext_small", source="local")
"""

from timm import list_models
from timm.models import model_entrypoint

from mim4d import MIM4DEncoder

dependencies = ["torch", "timm", "huggingface_hub", "safetensors", "numpy"]

globals().update({name: model_entrypoint(name) for name in list_models("mim4d_*")})


def encoder(repo_or_folder, **kwargs):
    """Load an encoder with its weights; see ``mim4d.MIM4DEncoder.from_pretrained``."""
    return MIM4DEncoder.from_pretrained(repo_or_folder, **kwargs)
