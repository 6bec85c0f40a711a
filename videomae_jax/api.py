"""A checkpoint as a Python object: `videomae_jax.load(path)`."""

import functools
import math
from typing import Any

import jax
import numpy as np

from videomae_jax.errors import UserError
from videomae_jax.inference.network import build_network, outputs, predict
from videomae_jax.interop.checkpoint_files import Checkpoint, load_checkpoint, save_checkpoint
from videomae_jax.models.tokens import patch_grid


def load(
    path: str,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    frames: int | None = None,
    image_size: int | None = None,
    inflate: str | None = None,
    tubelet: int | None = None,
    channels: int | None = None,
    ema: bool = False,
    dtype: str = "auto",
) -> "Model":
    """Read a model from a work directory, one of its steps, or anybody's file or folder.

    num_heads, decoder_num_heads: for sizes that are not published. frames, image_size: of the
    clips it was trained on, for files that do not say; `save` writes them down. inflate ("mean"
    or "centre"), tubelet: how the patch embedding of an image model gets its time axis.
    channels: change the embedding to so many. ema: take the moving average that a run of ours
    may have kept. dtype: of the computation, "auto" for bfloat16 on accelerators and float32
    elsewhere.
    Raises UserError when anything is damaged, missing, unexpected or in doubt.
    """
    checkpoint = load_checkpoint(
        str(path),
        num_heads=num_heads,
        decoder_num_heads=decoder_num_heads,
        frames=frames,
        image_size=image_size,
        inflate=inflate,
        tubelet=tubelet,
        channels=channels,
        ema=ema,
    )
    return Model(checkpoint, dtype=dtype)


class Model:
    """A trained model: its weights, and what they make of videos.

    A video is uint8 [B, F, H, W, C], not normalized: the stored mean and std are applied
    inside. Frames, height and width may be any multiples of the patch; positions are made for
    the clip's own grid, as the reference does, unless `config.model.position_grid` says
    otherwise. The first call with a shape compiles, later ones do not. Everything returned
    is float32. Methods raise UserError for another kind of video, or one the model is not for.

    config: as of a run of ours. params: float32, on the default device.
    labels: names of the classes, () if unknown. report: what was read as what, to print.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: str = "auto"):
        self.config, self.labels = checkpoint.config, checkpoint.labels
        self.report = checkpoint.report
        self.params = jax.device_put(checkpoint.params)
        self._network = build_network(self.config, dtype=dtype)
        self._outputs = jax.jit(self._output, static_argnames="name")
        self._predict = jax.jit(
            functools.partial(predict, self._network), static_argnames=("masked", "normalized")
        )

    def __repr__(self) -> str:
        return f"<{self.config.name}: {self.config.clip.frames} frames>"

    def tokens(self, video: Any) -> jax.Array:
        """Return every token [B, N, D], all patches visible, in raster order, time slowest.

        After the encoder's final norm; a fine-tuned model has none, its norm comes after the
        mean.
        """
        return self._outputs(self.params, self._check(video), name="tokens")

    def features(self, video: Any) -> jax.Array:
        """Return one vector per clip [B, D].

        The mean of `tokens`; for a fine-tuned model normed by its fc_norm, what its head sees.
        """
        return self._outputs(self.params, self._check(video), name="features")

    def logits(self, video: Any) -> jax.Array:
        """Return the scores of the classes [B, classes], of a fine-tuned model."""
        if "head" not in self.params:
            raise UserError(
                f"a model of task {self.config.task!r} has no classes: use features, or load a "
                "fine-tuned one"
            )
        return self._outputs(self.params, self._check(video), name="logits")

    def reconstruct(self, video: Any, masked: Any) -> tuple[jax.Array, jax.Array]:
        """Predict what a mask hides: (prediction [B, T, M, P], loss scalar).

        masked: bool [B, S], True is hidden, the same in every time step, M in every row; M
        patches in raster order come back. With config.normalized_targets they are normalized
        per patch and channel, and so is what the loss compares them to (paper section 3.1).
        """
        if "decoder" not in self.params:
            raise UserError(
                f"a model of task {self.config.task!r} has no decoder, it reconstructs nothing: "
                "load a pre-trained one"
            )
        video = self._check(video)
        masked, count = _check_mask(masked, video.shape, tuple(self.config.model.patch))
        return self._predict(
            self.params,
            video,
            masked,
            masked=count,
            normalized=self.config.normalized_targets,
        )

    def save(self, path: str, *, format: str = "native") -> None:
        """Write the model to a new path, for us ("native"), for others, or to be served.

        format: "native", a work directory; "mcg", a .pth with the original's names;
        "safetensors", one file with the same; "hf", a folder for transformers; "stablehlo", a
        folder with the function from a video to features and logits, not read back by `load`.
        """
        checkpoint = Checkpoint(self.params, self.config, self.labels, self.report)
        save_checkpoint(str(path), checkpoint, to=format)

    def _output(self, params: Any, video: jax.Array, *, name: str) -> jax.Array:
        return outputs(self._network, params, video)[name]

    def _check(self, video: Any) -> Any:
        """Return the video if the model can take it."""
        video = video if isinstance(video, jax.Array) else np.asarray(video)
        shape, channels = list(video.shape), len(self._network.mean)
        if video.ndim != 5:
            hint = "video[None] is a batch of one" if video.ndim == 4 else "B clips of F frames"
            raise UserError(f"video is {shape}: give [B, F, H, W, C]; {hint}")
        if video.dtype != np.uint8:
            raise UserError(f"video is {video.dtype}: give uint8, 0 to 255, not normalized")
        if shape[-1] != channels:
            raise UserError(f"video is {shape}, {shape[-1]} channels last: give {channels}")
        if not shape[0]:
            raise UserError(f"video is {shape}, no clips: give 1 or more")
        patch_grid(tuple(shape[1:4]), self._network.patch)
        return video


def _check_mask(masked: Any, video: tuple, patch: tuple) -> tuple[np.ndarray, int]:
    """Return the mask and how many patches each of its rows hides."""
    masked = np.asarray(masked)
    patches = math.prod(patch_grid(video[1:4], patch)[1:])
    if masked.dtype != np.bool_ or masked.shape != (video[0], patches):
        raise UserError(
            f"masked is {masked.dtype} {list(masked.shape)}: give bool {[video[0], patches]}, "
            "one row of patches per clip"
        )
    counts = masked.sum(axis=1)
    least, most = int(counts.min()), int(counts.max())
    if least != most:
        raise UserError(f"masked hides {least} to {most} patches: hide as many in every clip")
    if not 0 < most < patches:
        raise UserError(f"masked hides {most} of {patches} patches: hide 1 to {patches - 1}")
    return masked, most
