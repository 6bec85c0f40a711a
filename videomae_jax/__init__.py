"""VideoMAE in JAX: masked video pre-training for a laptop, a GPU or a TPU pod.

The letters of every shape in this package::

    B  clips in a batch            F  frames of a clip
    H  W  C  pixels and channels   T  time steps of tubes, F / pt
    S  patches per time step       N  tokens of a clip, T * S
    K  M  patches per time step that are visible and masked, K + M = S
    D  width of the model          P  values per token, pt * ph * pw * C

pt, ph and pw are the frames, height and width of a patch, 2 x 16 x 16 unless said otherwise.
A video is `uint8 [B, F, H, W, C]` until the patch embedding. In a mask, True is masked.

The names below are the public interface::

    import videomae_jax as vm

    model = vm.load("runs/demo")  # a checkpoint of any kind
    video = model.read_clip("holiday.mp4")  # uint8 [1, F, H, W, C]
    features = model.features(video)  # float32 [1, D]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videomae_jax.api import (
        Model,
        UserError,
        evaluate,
        evaluate_detector,
        extract,
        load,
        predict,
        read_clip,
    )

__version__ = "0.1.0"
__all__ = [
    "Model",
    "UserError",
    "evaluate",
    "evaluate_detector",
    "extract",
    "load",
    "predict",
    "read_clip",
]


def __getattr__(name: str) -> Any:
    # JAX takes a second to import, and the command line imports this module first.
    if name in __all__:
        from videomae_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
