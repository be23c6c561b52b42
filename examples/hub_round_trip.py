"""Push an encoder to the Hugging Face Hub and pull it again; in a shell, use `mim4d-hub push` and `pull`.

hf auth login
python examples/hub_round_trip.py --run runs/demo --repo your-name/my-encoder --private
"""

from pathlib import Path
from typing import Any

import timm
import torch
import tyro

from mim4d import MIM4DEncoder
from mim4d.flags import report_user_errors


def main(repo: str, run: Path = Path("runs/demo"), private: bool = False) -> None:
    """Publish an encoder, download it and compare the features.

    Args:
        repo: ORG/NAME of the repository, created if it does not exist.
        run: A run of mim4d-pretrain, or a folder with an encoder.
        private: Create a private repository.
    """
    encoder: Any = MIM4DEncoder.from_pretrained(run)
    print(f"pushed: {encoder.push_to_hub(repo, private=private)}")

    pulled: Any = MIM4DEncoder.from_pretrained(repo)  # with the masked forward
    plain = timm.create_model(f"hf-hub:{repo}", pretrained=True, features_only=True).eval()  # timm's own class
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = encoder.forward_intermediates(image, intermediates_only=True)
        for other in (pulled.forward_intermediates(image, intermediates_only=True), plain(image)):
            assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))
    print(f"pulled {repo}: same features as before the push")


if __name__ == "__main__":
    with report_user_errors():
        tyro.cli(main)
