"""VideoMAE in JAX: masked video pre-training that runs on a laptop, a GPU or a TPU pod.

The letters of every shape in this package:

    B  clips in a batch            F  frames of a clip
    H  W  C  pixels and channels   T  time steps of tubes, F / 2
    S  patches per time step       N  tokens of a clip, T * S
    K  M  patches per time step that are visible and masked, K + M = S
    D  width of the model          P  values per token, 2 * 16 * 16 * C

A video is `uint8 [B, F, H, W, C]` until the patch embedding. In a mask, True is masked.

`load(path)` opens a checkpoint of any kind; see `api.Model` for what it can do.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    # JAX takes a second to import, and the command line begins here.
    if name in ("load", "Model"):
        from videomae_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
