"""Floating-point operations in closed form; a multiply-add counts as two.

The counts of the compiler cannot be used: XLA counts the body of a scan once.
"""

from videomae_jax.models.vit import Size


def block_flops(size: Size, tokens: int, *, context: int | None = None) -> float:
    """Return the forward operations of one transformer block for `tokens` tokens of one clip.

    context: the number of tokens they attend to, if these are not the tokens themselves.
    """
    sources = tokens if context is None else context
    projections = 4 * (tokens + sources) * size.width**2
    mlp = 4 * tokens * size.width * size.mlp_width
    attention = 4 * tokens * sources * size.width
    return projections + mlp + attention


def finetune_flops(encoder: Size, *, tokens: int, values: int, classes: int) -> tuple[float, float]:
    """Return the (forward, train) operations of one clip, of which all tokens are encoded.

    tokens: N. values: P, the values per token. Training is counted as in `pretrain_flops`.
    """
    embed = 2 * tokens * values * encoder.width
    body = encoder.depth * block_flops(encoder, tokens) + 2 * encoder.width * classes
    return embed + body, 2 * embed + 3 * body


def contrast_flops(
    encoder: Size, *, tokens: int, values: int, hidden: int, dim: int
) -> tuple[float, float]:
    """Return the (forward, train) operations of one clip of MoCo v3, of which all are encoded.

    tokens: N. values: P, the values per token. hidden, dim: of the heads. Training is three times
    the forward pass, except for the frozen embedding, and one forward pass for the keys.
    """
    embed = 2 * tokens * values * encoder.width
    projector = 2 * (encoder.width * hidden + hidden**2 + hidden * dim)
    query = encoder.depth * block_flops(encoder, tokens) + projector + 4 * hidden * dim
    return embed + query, 2 * embed + 4 * query - 4 * hidden * dim


def pretrain_flops(
    encoder: Size, decoder: Size, *, visible: int, decoded: int, values: int, cross: bool = False
) -> tuple[float, float]:
    """Return the (forward, train) operations of one clip.

    visible: the number of encoded tokens. decoded: the number of predicted tokens. values: P,
    the values per token. cross: the decoder has cross-attention, see `mae.Decoder`.
    Training is three times the forward pass, except that the embedding needs no input gradient.
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


def feature_flops(student: Size, generator: Size, *, visible: int, seen: int) -> float:
    """Return the forward operations of the heads of AMD at both depths, of one clip.

    generator: of the blocks that predict what the student does not see. visible, seen: the tokens
    that the student and the teacher encode.
    """
    projection = 2 * visible * student.width * generator.width
    return 2 * (projection + generator.depth * block_flops(generator, seen))
