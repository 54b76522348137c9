"""What a drill counts: how often something was tried, how it ended, and every end that must not happen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MOST_EXAMPLES = 20


@dataclass
class Tally:
    """Counts of one drill.

    Attributes:
        name: in words.
        about: what is done, one sentence.
        allowed: the ends that are right, with their meaning.
        tried: how often.
        ends: how often each end came; one that is not allowed is a failure.
        examples: of ends that are not allowed, for whoever repairs them.
    """

    name: str
    about: str
    allowed: dict[str, str]
    tried: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, end: str, example: str = "") -> None:
        self.tried += 1
        self.ends[end] += 1
        if end not in self.allowed and len(self.examples) < MOST_EXAMPLES:
            self.examples.append(f"{end}: {example}")

    @property
    def bad(self) -> int:
        """Ends that must not happen."""
        return sum(count for end, count in self.ends.items() if end not in self.allowed)


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    """("made", value) or ("clear error", error); every other exception is named by its type.

    An error is clear when it is one of the package's own and says more than a word.
    """
    from hybridzoo.errors import HybridzooError

    try:
        return "made", call()
    except HybridzooError as error:
        return ("clear error" if len(str(error).split()) > 3 else "error without a text"), error
    except RecursionError as error:
        return "RecursionError", error
    except MemoryError as error:
        return "MemoryError", error
    except Exception as error:
        return type(error).__name__, error
