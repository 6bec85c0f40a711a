"""A released AVA detector in PyTorch, written from its description, and the golden file of it.

It reads the released names themselves and shares no code with the package. RoIAlign is a loop over
the sample points in float64. In an environment with PyTorch, `python tests/torch_detector.py`
writes tests/files/detect_tiny.pth and detect_tiny.npz anew.
"""

import argparse
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

FILES = Path(__file__).parent / "files"
MEAN, STD = np.asarray([122.7717, 115.9465, 102.9801]), 57.375  # of pixels in [0, 255]
PATCH = (2, 16, 16)
WIDTH, DEPTH, HEADS, CLASSES = 24, 2, 2, 80
GRID = (2, 4, 4)  # of the training clips: 4 frames of 64 x 64
SIZES = {"square": (64, 64), "wide": (80, 112), "padded": (80, 112)}  # of the clips, height, width
FILLED = SIZES | {"padded": (72, 100)}  # by the image, from the top left corner
BOXES = {
    # Whole clip, inside, on no cell's border, beyond the corner, smaller than a cell, a line.
    "square": [[0, 0, 64, 64], [8, 8, 40, 56], [3.3, 20.1, 30.7, 33.9], [50, 40, 64, 64]]
    + [[20, 20, 21, 21], [12, 0, 12, 64]],
    "wide": [[0, 0, 112, 80], [5.5, 1.25, 70.75, 79], [64, 16, 112, 80], [90, 2, 99, 77]]
    + [[0, 0, 3, 3], [110, 78, 112, 80]],
    "padded": [[0, 0, 100, 72], [60, 30, 100, 72], [97, 69, 100, 72]],
}


def detect(state, clip, boxes, *, heads, grid, roi=7, aligned=False):
    """Return logits float32 [boxes, classes] of one clip.

    state: tensors by released name. clip: float [C, F, H, W], normalized. boxes: [n, 4], x1 y1 x2
    y2 in pixels. grid: (T, rows, columns) of the training clips.
    """
    x = functional.conv3d(
        clip[None],
        state["patch_embed.proj.weight"],
        state["patch_embed.proj.bias"],
        stride=state["patch_embed.proj.weight"].shape[2:],
    )
    width, steps, rows, columns = x.shape[1:]
    x = x.flatten(2).transpose(1, 2) + _positions(width, grid, (rows, columns))
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    for index in range(depth):
        prefix = f"blocks.{index}."
        x = _block(
            x, {k[len(prefix) :]: w for k, w in state.items() if k.startswith(prefix)}, heads
        )
    x = _norm(x, state["norm.weight"], state["norm.bias"])
    features = x.reshape(steps, rows, columns, width).mean(0).permute(2, 0, 1)
    scale = 1 / state["patch_embed.proj.weight"].shape[-1]
    pooled = [
        torch.from_numpy(roi_align(features.double().numpy(), box, roi, scale, aligned).max((1, 2)))
        for box in boxes
    ]
    pooled = torch.stack(pooled).to(x.dtype)
    return functional.linear(pooled, state["head.weight"], state["head.bias"])


def normalized(video, filled):
    """Return uint8 [F, H, W, C] as float32 [C, F, H, W], with the statistics of the recipe.

    filled: height and width of the image; pixels outside of it are zero afterwards.
    """
    x = np.zeros(video.shape, np.float32)
    height, width = filled
    x[:, :height, :width] = (video[:, :height, :width] - MEAN) / STD
    return torch.from_numpy(x.transpose(3, 0, 1, 2))


def roi_align(features, box, size, scale, aligned):
    """Return [C, size, size] of a map [C, H, W], with adaptive sampling, point by point."""
    height, width = features.shape[1:]
    x1, y1, x2, y2 = (scale * float(v) - (0.5 if aligned else 0) for v in box)
    w, h = x2 - x1, y2 - y1
    if not aligned:
        w, h = max(w, 1.0), max(h, 1.0)
    down, right = (math.ceil(side / size) for side in (h, w))
    out = np.zeros([len(features), size, size])
    for p in range(size):
        for q in range(size):
            for i in range(down):
                for j in range(right):
                    y = y1 + (p + (i + 0.5) / down) * h / size
                    x = x1 + (q + (j + 0.5) / right) * w / size
                    if -1 <= y <= height and -1 <= x <= width:
                        out[:, p, q] += _bilinear(features, y, x)
    return out / max(down * right, 1)


def _bilinear(features, y, x):
    height, width = features.shape[1:]
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    below, beside = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = y - top, x - left
    upper = (1 - u) * features[:, top, left] + u * features[:, top, beside]
    lower = (1 - u) * features[:, below, left] + u * features[:, below, beside]
    return (1 - v) * upper + v * lower


def _positions(width, grid, side):
    """Return the sine-cosine table [1, N, D] of a grid, resized to other rows and columns."""
    angle = torch.arange(math.prod(grid), dtype=torch.float64)[:, None] / 10000 ** (
        2 * torch.div(torch.arange(width), 2, rounding_mode="floor") / width
    )
    table = torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos()).float()
    table = table.reshape(*grid, width).permute(0, 3, 1, 2)
    table = functional.interpolate(table, size=side, mode="bicubic", align_corners=False)
    return table.permute(0, 2, 3, 1).reshape(1, -1, width)


def _block(x, w, heads):
    count, width = x.shape[1:]
    y = _norm(x, w["norm1.weight"], w["norm1.bias"])
    bias = torch.cat([w["attn.q_bias"], torch.zeros(width), w["attn.v_bias"]])
    qkv = functional.linear(y, w["attn.qkv.weight"], bias)
    q, k, v = qkv.reshape(1, count, 3, heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
    y = (weights @ v).transpose(1, 2).reshape(1, count, width)
    x = x + functional.linear(y, w["attn.proj.weight"], w["attn.proj.bias"])
    y = _norm(x, w["norm2.weight"], w["norm2.bias"])
    y = functional.gelu(functional.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
    return x + functional.linear(y, w["mlp.fc2.weight"], w["mlp.fc2.bias"])


def _norm(x, weight, bias):
    return functional.layer_norm(x, [x.shape[-1]], weight, bias, eps=1e-6)


def random_state(width, depth, classes, *, seed):
    """Return random tensors under the released names; no bias is zero and no norm is one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, mean=0.0, std=0.2):
        return mean + std * torch.randn(*shape, generator=generator)

    def layer(name, *shape):
        return {
            f"{name}.weight": normal(*shape, std=shape[1] ** -0.5),
            f"{name}.bias": normal(shape[0]),
        }

    def norm(name):
        return {f"{name}.weight": normal(width, mean=1.0), f"{name}.bias": normal(width)}

    state = {
        "patch_embed.proj.weight": normal(width, 3, *PATCH, std=0.03),
        "patch_embed.proj.bias": normal(width),
    }
    for index in range(depth):
        name = f"blocks.{index}"
        state |= norm(f"{name}.norm1")
        state |= {f"{name}.attn.q_bias": normal(width), f"{name}.attn.v_bias": normal(width)}
        state[f"{name}.attn.qkv.weight"] = normal(3 * width, width, std=2 * width**-0.5)
        state |= layer(f"{name}.attn.proj", width, width) | norm(f"{name}.norm2")
        state |= layer(f"{name}.mlp.fc1", 4 * width, width)
        state |= layer(f"{name}.mlp.fc2", width, 4 * width)
    return OrderedDict(state | norm("norm") | layer("head", classes, width))


def main():
    """Write the golden file: weights as a training would save them, clips, boxes and logits."""
    state = random_state(WIDTH, DEPTH, CLASSES, seed=0)
    args = argparse.Namespace(model="detect_tiny", nb_classes=CLASSES)
    content = {"model": state, "epoch": 29, "scaler": {"scale": 65536.0}, "args": args}
    torch.save(content, FILES / "detect_tiny.pth")
    arrays = {}
    for name, (height, width) in SIZES.items():
        video = np.random.default_rng(0).integers(0, 256, [4, height // 8, width // 8, 3], np.uint8)
        video = video.repeat(8, axis=1).repeat(8, axis=2)
        boxes = np.asarray(BOXES[name], np.float32)
        clip = normalized(video, FILLED[name])
        logits = detect(state, clip, boxes, heads=HEADS, grid=GRID).numpy()
        clips = {"video": video, "size": np.int32(FILLED[name]), "boxes": boxes, "logits": logits}
        arrays |= {f"{name}/{key}": array for key, array in clips.items()}
    np.savez_compressed(FILES / "detect_tiny.npz", **arrays)


if __name__ == "__main__":
    main()
