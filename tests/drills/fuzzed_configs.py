"""Configurations with impossible, extreme and unknown values (hypothesis): a clear error, or a usable model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from tally import Tally, outcome

MODELS = (
    "chela_test",
    "co_detr_test",
    "deltanet_test",
    "hybrid_lm_test",
    "hymba_test",
    "iformer_test",
    "llamagen_vq_test",
    "mambaad_test",
    "maskmamba_test",
    "roberta_bilstm_test",
)
BUILT_EVERY = 10  # of the accepted configurations, every so many is also built, without memory
LARGEST = 512  # of the integers of a configuration that is built


def _values() -> Any:
    from hypothesis import strategies as st

    plain = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 9),
        st.sampled_from([0, 1, 7, 16, 64, 10**6, 2**31, 2**63, 2**200, -(2**40)]),
        st.floats(allow_nan=True, allow_infinity=True),
        st.text(max_size=8),
        st.sampled_from(["relu", "silu", "auto", "../../etc/passwd", "__class__", "<script>", "\x00", "1e-3"]),
    )
    return st.one_of(plain, st.lists(plain, max_size=4), st.dictionaries(st.text(max_size=5), plain, max_size=3))


def _near(value: Any) -> Any:
    """Values of the same kind as one that works: some are possible, some just not."""
    from hypothesis import strategies as st

    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.one_of(
            st.integers(-1, 2 * abs(value) + 2), st.sampled_from([value, 2 * value, value // 2, 3 * value])
        )
    if isinstance(value, float):
        return st.one_of(st.floats(-0.5, 2, allow_nan=False), st.just(value))
    if isinstance(value, list | tuple) and value:
        inner = st.sampled_from(list(value))
        return st.one_of(st.lists(inner, max_size=len(value) + 1), st.permutations(list(value)).map(type(value)))
    return st.one_of(st.none(), st.just(value), _values())


def drill(count: int, folder: Path, seed: int) -> Tally:
    """Change one to three values of a valid configuration, `count` times over all families."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    from hybridzoo import registry

    tally = Tally(
        "Fuzzed configurations",
        "one to three values of a valid configuration are replaced by impossible, extreme or unknown ones (hypothesis)",
        {
            "clear error": "refused by the package's own error",
            "accepted": "the values are possible",
            "built": "accepted, and the model was built without memory",
        },
    )
    each = -(-count // len(MODELS))
    for name in MODELS:
        entry = registry.models()[name]
        kind = registry.resolve(registry.get_family(entry.family).config_class)
        base = dict(entry.config)
        keys = sorted({*base, *(f for f in kind.__annotations__ if not f.startswith("_"))})
        usual = kind(**base)
        pairs = st.one_of(
            *(st.tuples(st.just(key), _near(getattr(usual, key, None))) for key in keys),
            st.tuples(st.sampled_from(keys), _values()),
            st.tuples(st.text(min_size=1, max_size=9), _values()),
        )
        changes = st.lists(pairs, min_size=1, max_size=3).map(dict)
        one = _trial(tally, name, kind, base)
        options = settings(
            max_examples=each, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seeded(seed)(options(given(changes)(one)))()
    return tally


def _trial(tally: Tally, name: str, kind: Any, base: dict[str, Any]) -> Any:
    """What hypothesis calls: one change of one family's configuration."""
    from hybridzoo import build_model

    def one(change: dict[str, Any]) -> None:
        end, value = outcome(lambda: kind(**{**base, **change}))
        if end == "made":
            end = "accepted"
            if tally.tried % BUILT_EVERY == 0 and _small(value.to_dict()):
                end, value = outcome(lambda: build_model(name, device="meta", **change))
                end = "built" if end == "made" else end
        tally.add(end, f"{name} with {change!r}: {str(value)[:200]}")

    return one


def _small(value: Any) -> bool:
    """Whether all numbers are small enough to build a model of them."""
    if isinstance(value, dict):
        return all(map(_small, value.values()))
    if isinstance(value, list | tuple):
        return len(value) < 64 and all(map(_small, value))
    return not isinstance(value, int | float) or abs(value) <= LARGEST
