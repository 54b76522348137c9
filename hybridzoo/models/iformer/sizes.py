"""What sizes an iFormer can have, and the checks of its configuration and input. Imports no model code."""

from __future__ import annotations

from collections.abc import Sequence

from hybridzoo.errors import ConfigError, InputError

NUM_STAGES = 4
STEM_STRIDES = {4: (2, 2), 2: (2, 1), 1: (1, 1)}  # strides of the stem's two convolutions, by their product
HIGH_MIXERS = ("inception", "attention")
GLOBAL_POOLS = ("avg", "max", "")


def attention_ramp(depths: Sequence[int], heads: Sequence[int | tuple[int, int]]) -> list[int]:
    """Attention heads per block: one number per stage, or two, for the first and the second half of its blocks."""
    ramp: list[int] = []
    for depth, count in zip(depths, heads, strict=True):
        first, second = count if isinstance(count, tuple) else (count, count)
        ramp += [first] * (depth // 2) + [second] * (depth - depth // 2)
    return ramp


def take_indices(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Feature indices counted from the front: None all, an int the last n, else each (negative from the end)."""
    if indices is None:
        return list(range(count))
    wanted = list(range(count - indices, count)) if isinstance(indices, int) else list(indices)
    found = [i + count if i < 0 else i for i in wanted]
    if not found or min(found) < 0 or max(found) >= count or len(wanted) > count:
        raise InputError(f"feature indices {indices} are outside the {count} stages (0 to {count - 1})")
    return found


def check_sizes(
    depths: Sequence[int],
    embed_dims: Sequence[int],
    num_heads: Sequence[int],
    attention_heads: Sequence[int],
    stem_stride: int,
    high_mixer: str,
) -> None:
    """Refuse sizes that do not fit together.

    Raises:
        ConfigError: names the field, the value and what is possible.
    """
    for name, value in (("depths", depths), ("embed_dims", embed_dims), ("num_heads", num_heads)):
        if len(value) != NUM_STAGES or min(value) < 1:
            raise ConfigError(f"{name}={list(value)}: give {NUM_STAGES} positive numbers, one per stage")
    if len(attention_heads) != sum(depths):
        raise ConfigError(
            f"attention_heads has {len(attention_heads)} entries for {sum(depths)} blocks (depths={list(depths)}): "
            "give one per block"
        )
    if stem_stride not in STEM_STRIDES:
        raise ConfigError(f"stem_stride={stem_stride}: choose one of {sorted(STEM_STRIDES)}")
    if high_mixer not in HIGH_MIXERS:
        raise ConfigError(f"high_mixer={high_mixer!r}: choose one of {', '.join(HIGH_MIXERS)}")
    stage_of = [k for k, depth in enumerate(depths) for _ in range(depth)]
    for j, (k, heads) in enumerate(zip(stage_of, attention_heads, strict=True)):
        dim, total = embed_dims[k], num_heads[k]
        if dim % total:
            raise ConfigError(f"embed_dims[{k}]={dim} is not a multiple of num_heads[{k}]={total}")
        if not 0 < heads < total:
            raise ConfigError(f"attention_heads[{j}]={heads}: stage {k + 1} has {total} heads; give 1 to {total - 1}")
        if high_mixer == "inception" and (dim // total * (total - heads)) % 2:
            raise ConfigError(
                f"block {j} has {dim // total * (total - heads)} high-frequency channels; the number must be even: "
                f"change embed_dims[{k}]={dim}, num_heads[{k}]={total} or attention_heads[{j}]={heads}"
            )
