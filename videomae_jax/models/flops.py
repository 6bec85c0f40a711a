"""Floating-point operations in closed form; one multiply-add is two.

Compilers' own counts are no use here: XLA counts the body of a scan once.
"""

from videomae_jax.models.vit import Size


def block_flops(size: Size, tokens: int, *, context: int | None = None) -> float:
    """Forward operations of one transformer block over `tokens` tokens of one clip.

    context: how many tokens they attend to, where those are others than they themselves.
    """
    sources = tokens if context is None else context
    projections = 4 * (tokens + sources) * size.width**2
    mlp = 4 * tokens * size.width * size.mlp_width
    attention = 4 * tokens * sources * size.width
    return projections + mlp + attention


def finetune_flops(encoder: Size, *, tokens: int, values: int, classes: int) -> tuple[float, float]:
    """Return (forward, train) operations of one clip, all N = `tokens` of it encoded.

    values: P, numbers per token. Training as in `pretrain_flops`.
    """
    embed = 2 * tokens * values * encoder.width
    body = encoder.depth * block_flops(encoder, tokens) + 2 * encoder.width * classes
    return embed + body, 2 * embed + 3 * body


def pretrain_flops(
    encoder: Size, decoder: Size, *, visible: int, decoded: int, values: int, cross: bool = False
) -> tuple[float, float]:
    """Return (forward, train) operations of one clip.

    visible: tokens encoded; decoded: mask tokens predicted; values: P, numbers per token.
    cross: the decoder attends from these to those only, see `mae.Decoder`.
    Training is three times the forward pass, but the embedding needs no input gradient.
    """
    embed = 2 * visible * values * encoder.width
    block = (
        block_flops(decoder, decoded, context=visible)
        if cross
        else block_flops(decoder, visible + decoded)
    )
    body = (
        encoder.depth * block_flops(encoder, visible)
        + 2 * visible * encoder.width * decoder.width
        + decoder.depth * block
        + 2 * decoded * decoder.width * values
    )
    return embed + body, 2 * embed + 3 * body
