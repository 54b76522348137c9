"""ListOps (Nangia & Bowman 2018) as the Long Range Arena makes it: nested MIN, MAX, MED and SM over digits.

Source of the rules: google-research/long-range-arena, `lra_benchmarks/data/listops.py`; this is our own code for the
same draws, so a seed gives the samples of the official program. A draw is a tree: at depth d < `max_depth` a node is a
digit when `random() > 0.25`, else an operator with 2 to `max_args` children, drawn before the operator itself. Trees of
another length than asked for are thrown away (about 92 % at the official lengths), so the fast path only measures a
tree; tokens and the value are made for those that stay.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hybridzoo._atomic_file import whole_file
from hybridzoo.data.lra.words import PythonWords, block_seed
from hybridzoo.errors import DataError

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
END, CLOSE = "]", "X"  # as written, and as the loader renames it
DIGITS = tuple(str(i) for i in range(10))
# Official: the number of samples, and 1,000 of them per block of ours.
OFFICIAL_SIZES = {"train": 96_000, "val": 2_000, "test": 2_000}
BLOCK = 1_000
MADE_FILE = "made.json"  # beside what is made here, so that a result can say so
_CHUNK = 1 << 18  # words read at once
_MARGIN = 128  # of them are kept back; a draw reads far fewer (each try is thrown away with probability 1/2 or less)
_PATIENCE = 100_000  # draws without a new sample, after which the rules are taken to allow no more
_QUARTER = 1 << 25  # random() > 0.25 in terms of the upper 27 of its 53 bits


@dataclass(frozen=True)
class ListOpsRules:
    """Sizes of the trees; the defaults are the official ones.

    Attributes:
        min_length, max_length: both exclusive, in tokens (digits, operators and closing brackets).
    """

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000

    def __post_init__(self) -> None:
        if self.max_depth < 2 or self.max_args < 2:
            raise DataError(f"max_depth={self.max_depth} and max_args={self.max_args} must be at least 2")
        if self.max_length - self.min_length < 2 or self.max_length < 4:
            raise DataError(
                f"no tree is longer than min_length={self.min_length} and shorter than max_length={self.max_length} "
                "tokens; both limits are exclusive"
            )


@dataclass(frozen=True)
class Expression:
    """One sample.

    Attributes:
        tokens: `("[MAX", "6", "2", "]")`.
        value: 0 to 9.
    """

    tokens: tuple[str, ...]
    value: int

    @property
    def source(self) -> str:
        """The text of the official files: the binary tree in parentheses, `( ( ( [MAX 6 ) 2 ) ] )`."""
        return with_parentheses(self.tokens)


def with_parentheses(tokens: tuple[str, ...]) -> str:
    """Tokens as the binary tree that the official program prints: an operator takes its arguments one by one."""
    opened: list[list[str]] = [[]]
    for token in tokens:
        if token in OPERATORS:
            opened.append([token])
            continue
        if token != END:
            opened[-1].append(token)
            continue
        operator, *arguments = opened.pop()
        inner = " ".join(f"{argument} )" for argument in arguments)
        opened[-1].append(f"{'( ' * (len(arguments) + 1)}{operator} {inner} ] )")
    return opened[0][0]


def evaluate(tokens: tuple[str, ...]) -> int:
    """The value of an expression; raises DataError for tokens that are none."""
    stack: list[list[int]] = [[]]
    operators: list[int] = []
    try:
        for token in tokens:
            if token in DIGITS:
                stack[-1].append(int(token))
            elif token in OPERATORS:
                operators.append(OPERATORS.index(token))
                stack.append([])
            elif token in (END, CLOSE):
                arguments = stack.pop()
                stack[-1].append(_apply(operators.pop(), arguments))
            else:
                raise ValueError(f"the token {token!r}")
        ((value,),) = stack
    except (ValueError, IndexError) as error:
        raise DataError(f"no ListOps expression: {' '.join(tokens)[:80]!r} ({error})") from error
    return value


def _apply(operator: int, arguments: list[int]) -> int:
    if operator == 0:
        return min(arguments)
    if operator == 1:
        return max(arguments)
    if operator == 2:  # int(numpy.median): the floor of the mean of the middle two
        middle = sorted(arguments)
        return (middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) // 2
    return sum(arguments) % 10


class ListOpsStream:
    """The trees that the official program draws after `random.seed(seed)`, one by one.

    Args:
        seed: of Python's generator.
        rules: sizes.
    """

    def __init__(self, seed: int, rules: ListOpsRules | None = None) -> None:
        self.rules = ListOpsRules() if rules is None else rules
        self.tries = 0
        self._words = PythonWords(seed)
        self._rest = np.zeros(0, np.uint32)
        self._position = 0
        self._more(_CHUNK)

    def accepted(self, patience: int | None = None) -> Iterator[Expression]:
        """The trees whose length is right, in order, repetitions included; ends after `patience` draws without one."""
        low, high = self.rules.min_length, self.rules.max_length
        last = self.tries
        while patience is None or self.tries - last <= patience:
            self.tries += 1
            start = self._position
            while True:
                try:
                    length, end = self._measure(start)
                    break
                except IndexError:  # the tree goes on behind the words at hand
                    self._more(_CHUNK, keep_from=start)
                    start = 0
            self._position = end
            if low < length < high:
                last = self.tries
                yield self._build(start)

    def _more(self, count: int, keep_from: int = 0) -> None:
        """Read words and compute for every position what each kind of draw there would give, and how far it reaches.

        Reaches are steps, not positions: small numbers make lists that cost little.
        """
        words = np.concatenate([self._rest[keep_from:], self._words.take(count)])
        size = len(words)
        usable = size - _MARGIN  # every draw that starts before this ends among the words at hand
        index = np.arange(size)

        def draw(bits: int, below: int) -> tuple[np.ndarray, np.ndarray]:
            """random._randbelow: the first word from here whose upper bits are below; its value, and the step."""
            value = (words >> np.uint32(32 - bits)).astype(np.uint8)
            hit = np.minimum.accumulate(np.where(value < below, index, size - 1)[::-1])[::-1]
            return value[hit], (hit + 1 - index).clip(max=255).astype(np.uint8)

        digit, digit_step = draw(4, 10)
        extra = self.rules.max_args - 1  # randint(2, max_args) draws below max_args - 1
        children, children_step = draw(extra.bit_length(), extra)
        operator, operator_step = draw(3, 4)
        # random.random() reads two words; for 2^-2 the upper 27 bits decide, but for one value of them.
        upper, lower = words[:-1] >> np.uint32(5), words[1:] >> np.uint32(6)
        leaf = (upper > _QUARTER) | ((upper == _QUARTER) & (lower > 0))
        # 0 where an operator starts
        leaf_step = np.where(leaf[:usable], digit_step[2 : usable + 2] + 2, 0)
        self._leaf_step: list[int] = leaf_step.tolist()
        self._leaf: list[int] = digit[2 : usable + 2].tolist()
        self._digit, self._digit_step = digit[:usable].tolist(), digit_step[:usable].tolist()
        self._children = (children[2 : usable + 2] + 2).tolist()
        self._children_step = (children_step[2 : usable + 2] + 2).tolist()
        self._operator, self._operator_step = operator[:usable].tolist(), operator_step[:usable].tolist()
        self._rest, self._position = words, 0

    def _measure(self, start: int) -> tuple[int, int]:
        """Tokens of the tree that starts at a position, and where it ends."""
        leaf_step, digit_step = self._leaf_step, self._digit_step
        children, children_step, operator_step = self._children, self._children_step, self._operator_step
        deepest = self.rules.max_depth

        def node(i: int, depth: int) -> tuple[int, int]:  # of an operator
            count = children[i]
            i += children_step[i]
            length = 2 + count
            if depth == deepest:
                for _ in range(count):
                    i += digit_step[i]
                return length, i + operator_step[i]
            depth += 1
            for _ in range(count):
                step = leaf_step[i]
                if step:
                    i += step
                else:
                    inner, i = node(i, depth)
                    length += inner - 1
            return length, i + operator_step[i]

        step = leaf_step[start]
        return (1, start + step) if step else node(start, 2)

    def _build(self, start: int) -> Expression:
        """The tree that starts at a position."""
        leaf_step, leaf, digit, digit_step = self._leaf_step, self._leaf, self._digit, self._digit_step
        deepest = self.rules.max_depth
        tokens: list[str] = []

        def node(i: int, depth: int) -> tuple[int, int]:  # of an operator
            place, count = len(tokens), self._children[i]
            tokens.append("")
            i += self._children_step[i]
            values = []
            for _ in range(count):
                if depth == deepest:
                    value = digit[i]
                    i += digit_step[i]
                elif leaf_step[i]:
                    value = leaf[i]
                    i += leaf_step[i]
                else:
                    value, i = node(i, depth + 1)
                    values.append(value)
                    continue
                tokens.append(DIGITS[value])
                values.append(value)
            operator = self._operator[i]
            tokens[place] = OPERATORS[operator]
            tokens.append(END)
            return _apply(operator, values), i + self._operator_step[i]

        if leaf_step[start]:
            return Expression((DIGITS[leaf[start]],), leaf[start])
        value, _ = node(start, 2)
        return Expression(tuple(tokens), value)


def generate(count: int, seed: int = 0, rules: ListOpsRules | None = None) -> list[Expression]:
    """The first `count` different samples of one stream: those of the official program with this seed."""
    found: dict[tuple[str, ...], Expression] = {}
    stream, newest = ListOpsStream(seed, rules), 0
    for sample in stream.accepted(patience=_PATIENCE):
        if sample.tokens not in found:
            found[sample.tokens], newest = sample, stream.tries
        if len(found) >= count:
            return list(found.values())
        if stream.tries - newest > _PATIENCE:
            break
    raise DataError(
        f"only {len(found)} different trees of {stream.tries:,} draws fit {stream.rules}; ask for fewer samples, or "
        "for a wider range of lengths"
    )


# Files ---------------------------------------------------------------------------------------------------------------


def _block_rows(seed: int, block: int, count: int, rules: ListOpsRules) -> list[tuple[str, int]]:
    return [(sample.source, sample.value) for sample in generate(count, block_seed(seed, block), rules)]


def blocks(total: int, size: int) -> list[int]:
    """Sizes of the blocks that make up `total` samples."""
    return [min(size, total - start) for start in range(0, total, size)]


def write_listops(
    out: str | Path,
    *,
    sizes: dict[str, int] | None = None,
    seed: int = 0,
    workers: int = 1,
    rules: ListOpsRules | None = None,
    block: int = BLOCK,
    progress: bool = False,
) -> dict[str, int]:
    """Write `basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv` in the official layout.

    Samples are made in blocks, each from a seed of its own, so the files do not depend on the number of workers. Block
    0 is the official program's output for `seed`. A sample that occurs twice stays in its first place only, and further
    blocks fill up, so no sample lies in two splits.

    Args:
        out: folder; files that exist are refused.
        sizes: samples of train, val and test; the official 96,000 / 2,000 / 2,000 if left out.
        seed: of the set.
        workers: processes.
        rules: sizes of the trees.
        block: samples of a block; another size is another data set.
        progress: show a bar on stderr.

    Returns:
        Samples written, by split.

    Raises:
        DataError: files exist, or nothing fits the rules.
    """
    out, rules = Path(out), ListOpsRules() if rules is None else rules
    sizes = dict(OFFICIAL_SIZES) if sizes is None else dict(sizes)
    if min(sizes.values()) < 0 or not sum(sizes.values()):
        raise DataError(f"sizes of the splits must be 0 or more and not all 0, got {sizes}")
    if workers < 1 or block < 1:
        raise DataError(f"workers and block must be at least 1, got {workers} and {block}")
    paths = {name: out / f"basic_{name}.tsv" for name, count in sizes.items() if count}
    for path in paths.values():
        if path.exists():
            raise DataError(f"{path} exists; give another folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    rows = _rows(sum(sizes.values()), seed, workers, rules, block, progress)
    for name, path in paths.items():
        with whole_file(path) as staged, open(staged, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["Source", "Target"])
            for _ in range(sizes[name]):
                writer.writerow(next(rows))
    facts = {"made_by": "hybridzoo data lra-listops", "seed": seed, "sizes": sizes, "block": block, **asdict(rules)}
    (out / MADE_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return {name: sizes[name] for name in paths}


def _rows(
    total: int, seed: int, workers: int, rules: ListOpsRules, block: int, progress: bool
) -> Iterator[tuple[str, int]]:
    """Different samples in the order of the blocks, as many as asked for."""
    seen: set[int] = set()
    planned = blocks(total, block)
    left, number = total, 0
    with tqdm(total=total, unit="sample", desc="ListOps", disable=not progress) as bar:
        while left > 0:
            before = left
            for part in _in_order(seed, number, planned, workers, rules):
                fresh = []
                for source, value in part:
                    key = hash(source)
                    if key not in seen:
                        seen.add(key)
                        fresh.append((source, value))
                yield from fresh[:left]
                bar.update(min(len(fresh), left))
                left -= min(len(fresh), left)
            if left == before:
                raise DataError(
                    f"after {total - left} different samples only repetitions come for {rules}; ask for fewer samples, "
                    "or for a wider range of lengths"
                )
            number += len(planned)
            planned = blocks(left, block)  # in place of repetitions


def _in_order(
    seed: int, first: int, sizes: list[int], workers: int, rules: ListOpsRules
) -> Iterator[list[tuple[str, int]]]:
    if workers == 1 or len(sizes) < 2:
        for number, size in enumerate(sizes, first):
            yield _block_rows(seed, number, size, rules)
        return
    # At most two blocks a worker are under way or waiting, so the memory does not grow with the set.
    with ProcessPoolExecutor(min(workers, len(sizes)), mp_context=get_context("spawn")) as pool:
        running: deque[Future[list[tuple[str, int]]]] = deque()
        for number, size in enumerate(sizes, first):
            running.append(pool.submit(_block_rows, seed, number, size, rules))
            if len(running) >= 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
