"""Train the Flax classifier in an optax loop of your own, on the demo's clips.

python examples/finetune_in_your_loop.py [STEPS]

To begin with the encoder of a checkpoint, replace params["encoder"] by that of vm.load(PATH).params
for a fine-tuned model of the same size (a pre-trained encoder also has a final norm: drop "norm").
"""

import csv
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import videomae_jax as vm
from videomae_jax.models.classifier import VideoClassifier, init_classifier
from videomae_jax.models.tokens import patch_grid, patchify
from videomae_jax.models.vit import SIZES

DATA = Path(__file__).parent.parent / "data/mocap_studio"
FRAMES, SIZE, PATCH, BATCH = 8, 48, (4, 8, 8), 16


def read(manifest: Path, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Return clips, uint8 [B, F, H, W, C], and labels, int32 [B], of every n-th video."""
    rows = list(csv.reader(manifest.open(), delimiter=" "))[::every]
    clips = [vm.read_clip(DATA / path, frames=FRAMES, stride=4, size=SIZE) for path, _ in rows]
    labels = np.unique([name for _, name in rows], return_inverse=True)[1]
    return np.stack(clips), labels.astype(np.int32)


def main(steps: int = 200) -> list[float]:
    """Train for `steps` steps, print the loss, and return it for each step."""
    clips, labels = read(DATA / "train.csv", every=4)
    model = VideoClassifier(
        encoder=SIZES["tiny"].encoder,
        patch=PATCH,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        classes=12,
    )
    grid = patch_grid(clips.shape[1:4], PATCH)
    params = init_classifier(model, jax.random.key(0), grid)
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, steps), weight_decay=0.05)

    @jax.jit
    def train_step(params, state, video, label):
        def loss_fn(params):
            logits = model.apply({"params": params}, patchify(video, PATCH), grid)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses, rng = optimizer.init(params), [], np.random.default_rng(0)
    for step in range(steps):
        rows = rng.integers(len(clips), size=BATCH)
        params, state, loss = train_step(params, state, jnp.asarray(clips[rows]), labels[rows])
        losses.append(float(loss))
        if step % 20 == 0:
            print(f"step {step}  loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
