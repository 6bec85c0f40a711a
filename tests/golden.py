"""The reference implementation's tiny models, in our layout."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from videomae_jax.interop.torch_file import map_torch
from videomae_jax.models.vit import Size

DATA = Path(__file__).parent / "files"
WEIGHTS = {
    "pretrain_tiny": ("pretrain_tiny.pth", "model"),
    "finetune_tiny": ("finetune_tiny_deepspeed.pth", "module"),
}


class Golden(NamedTuple):
    """The arrays of one file, the settings of its model, and the sizes of encoder and decoder."""

    arrays: dict[str, np.ndarray]
    config: dict
    encoder: Size
    decoder: Size

    def tree(self, prefix: str) -> dict:
        """Return the pre-training tensors under "param", "grad" or "param_after", converted."""
        take = {
            name.removeprefix(f"{prefix}/"): array
            for name, array in self.arrays.items()
            if name.startswith(f"{prefix}/")
        }
        width = self.encoder.width
        embed = take["encoder.patch_embed.proj.weight"].transpose(2, 3, 4, 1, 0)
        return {
            "encoder": {
                "embed": {
                    "kernel": embed.reshape(-1, width),
                    "bias": take["encoder.patch_embed.proj.bias"],
                },
                "blocks": _blocks(take, "encoder", self.encoder),
                "norm": _norm(take, "encoder.norm"),
            },
            "encoder_to_decoder": {"kernel": take["encoder_to_decoder.weight"].T},
            "mask_token": take["mask_token"].reshape(-1),
            "decoder": {
                "blocks": _blocks(take, "decoder", self.decoder),
                "norm": _norm(take, "decoder.norm"),
                "head": _dense(take, "decoder.head"),
            },
        }

    def classifier_tree(self, prefix: str) -> dict:
        """Return the fine-tuning tensors under "param", "grad" or "param_after", converted."""
        start = f"{prefix}/"
        take = {k.removeprefix(start): a for k, a in self.arrays.items() if k.startswith(start)}
        # The names of its blocks have no prefix, unlike in pre-training.
        blocks = {f"encoder.{name}": array for name, array in take.items()}
        embed = take["patch_embed.proj.weight"].transpose(2, 3, 4, 1, 0)
        return {
            "encoder": {
                "embed": {
                    "kernel": embed.reshape(-1, self.encoder.width),
                    "bias": take["patch_embed.proj.bias"],
                },
                "blocks": _blocks(blocks, "encoder", self.encoder),
            },
            "fc_norm": _norm(take, "fc_norm"),
            "head": _dense(take, "head"),
        }


def read_torch(path):
    """Return the content of a .pth, its tensors as views of the file."""
    return map_torch(path)[0]


def load_golden(name: str) -> Golden:
    """Read tests/files/NAME.npz, and the weights, "param/...", from the .pth file of that model."""
    arrays = dict(np.load(DATA / f"{name}.npz"))
    file, key = WEIGHTS[name]
    weights = read_torch(DATA / file)[key]
    arrays |= {f"param/{tensor}": np.asarray(weights[tensor]) for tensor in weights}
    config = json.loads(str(arrays.pop("config")))
    return Golden(
        arrays,
        config,
        Size(config["d"], config["depth"], config["h"], 4 * config["d"]),
        Size(config["dd"], config["ddepth"], config["dh"], 4 * config["dd"]),
    )


def relative_error(ours, reference) -> float:
    """Return the largest difference, divided by the largest absolute value of the reference."""
    reference = np.asarray(reference)
    return float(np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max())


def _norm(take, name):
    return {"scale": take[f"{name}.weight"], "bias": take[f"{name}.bias"]}


def _dense(take, name):
    return {"kernel": take[f"{name}.weight"].T, "bias": take[f"{name}.bias"]}


def _blocks(take, side, size):
    """Stack the parameters of the blocks along a leading depth axis."""
    head = (size.heads, size.width // size.heads)

    def block(index):
        name = f"{side}.blocks.{index}"
        qkv = take[f"{name}.attn.qkv.weight"].T
        return {
            "norm1": _norm(take, f"{name}.norm1"),
            "norm2": _norm(take, f"{name}.norm2"),
            "attn": {
                "qkv": qkv.reshape(size.width, 3, *head),
                "q_bias": take[f"{name}.attn.q_bias"].reshape(head),
                "v_bias": take[f"{name}.attn.v_bias"].reshape(head),
                "proj": _dense(take, f"{name}.attn.proj"),
            },
            "mlp": {
                "fc1": _dense(take, f"{name}.mlp.fc1"),
                "fc2": _dense(take, f"{name}.mlp.fc2"),
            },
        }

    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(block, range(size.depth)))
