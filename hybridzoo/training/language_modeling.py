"""Language modelling: tokenizer, packed datasets, validation in bits per byte, tokens per second.

A recipe says in `data.options` how texts become sequences; these keys are not the reader's:

    sequence_length   tokens of a sequence (512)
    document_masks    documents in one sequence do not see each other (true)
    stream            read the train text as it goes, from files below data.root or from a hub set (false)
    stream_tokens     tokens that count as one epoch of a stream
    shuffle_block     documents of a stream that are shuffled together (1024)
    validation_documents   of a stream without files for validation: its first documents are held out (200)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from hybridzoo.data import DataBundle, DataInfo, data_spec
from hybridzoo.data.readers.corpus import as_split
from hybridzoo.data.text_stream import (
    IGNORED,
    PackedStream,
    StreamSplit,
    TextStream,
    file_shards,
    hold_out,
    hub_shards,
)
from hybridzoo.data.text_stream_dataset import PackedText, StreamedText, WindowedText
from hybridzoo.data.text_stream_tokenizers import byte_tokenizer, check_vocabulary, kept_tokenizer
from hybridzoo.errors import ConfigError, DataError
from hybridzoo.training.objectives import Objective
from hybridzoo.training.sampling import Key
from hybridzoo.training.schema import Recipe

TOKENIZER_TEXT = 100_000_000  # characters that a tokenizer is trained on at most


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How documents become sequences; see the module."""

    sequence_length: int = 512
    document_masks: bool = True
    stream: bool = False
    stream_tokens: int | None = None
    shuffle_block: int = 1024
    validation_documents: int = 200


def split_options(options: Mapping[str, Any]) -> tuple[Batching, dict[str, Any]]:
    """`data.options` parted into ours and the reader's.

    Raises:
        ConfigError: a value of the wrong type, or an impossible one.
    """
    names = {f.name: f.type for f in fields(Batching)}
    ours = {key: value for key, value in options.items() if key in names}
    for key, value in ours.items():
        flag = names[key] == "bool"
        if isinstance(value, bool) != flag or not isinstance(value, bool if flag else int):
            raise ConfigError(
                f"data.options.{key} = {value!r}; expected {'true or false' if flag else 'a whole number'}"
            )
    batching = Batching(**ours)
    if batching.sequence_length < 2:
        raise ConfigError(
            f"data.options.sequence_length = {batching.sequence_length}; a sequence has at least 2 tokens"
        )
    if batching.stream and (batching.stream_tokens or 0) < batching.sequence_length:
        raise ConfigError("data.options.stream needs stream_tokens: how many tokens count as one epoch")
    return batching, {key: value for key, value in options.items() if key not in names}


def build_lm_tokenizer(given: str, texts: Any) -> Any:
    """`train:8192` trains a byte-level BPE of that size on the texts; `bytes` needs no training.

    Args:
        given: of the recipe's data.tokenizer.
        texts: a sequence of documents of the train split.
    """
    if given == "bytes":
        return byte_tokenizer()
    return kept_tokenizer(list(_some(texts)), int(given.removeprefix("train:")))


def _some(texts: Any) -> Iterator[str]:
    size = 0
    for text in texts:
        if size > TOKENIZER_TEXT:
            return
        size += len(text)
        yield text


class InOrder(Sampler[list[Key]]):
    """Batches of a stream: this process' sequences one after another; the epoch goes on where the last one ended.

    Args:
        size: sequences of this process in an epoch.
        batch_size: sequences of a batch.
    """

    def __init__(self, size: int, batch_size: int):
        self.size, self.batch_size, self.epoch, self.drop_last = size, batch_size, 0, True

    def __len__(self) -> int:
        return max(self.size // self.batch_size, 1)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield [Key(self.epoch, start + i, 0) for i in range(self.batch_size)]


class Stream(StreamedText):
    """A StreamedText that brings its own order of batches."""

    def batch_sampler(self, batch_size: int, **_: Any) -> InOrder:
        """Batches in the order of the stream; seed, rank and world are the stream's own."""
        whole = len(self) // batch_size * batch_size
        self.length = max(whole, batch_size)  # an epoch is whole batches, so that no sequence is left between two
        return InOrder(self.length, batch_size)


def build_lm_datasets(
    splits: Mapping[str, Any],
    tokenizer: Any,
    model: Any,
    batching: Batching,
    *,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> tuple[Any, Any]:
    """Train and validation dataset (None without that split).

    Args:
        splits: of the bundle; splits that hand out batches themselves (MQAR) are taken as they are.
        tokenizer: None for those.
        model: whose vocabulary must hold the tokenizer's.
        batching: see above.
        seed: of the order of documents and of the cuts.
        rank, world: of this process.

    Raises:
        InputError: the tokenizer has more tokens than the model.
    """
    train, validation = splits["train"], splits.get("validation")
    if hasattr(train, "__getitems__"):
        return train, validation
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings, type(model).__name__)
    length, masked = batching.sequence_length, batching.document_masks
    held_out = None if validation is None else WindowedText(tokenizer, validation.content, length, masked=masked)
    if not isinstance(train, StreamSplit):
        return PackedText(tokenizer, train.content, length, masked=masked, seed=seed), held_out
    texts = TextStream(train.shards, seed=seed, shuffle_block=batching.shuffle_block, rank=rank, world=world)
    packed = PackedStream(texts, tokenizer, length, masked=masked)
    return Stream(packed, max((batching.stream_tokens or 0) // (length * world), 1)), held_out


def open_stream(recipe: Recipe, batching: Batching, options: Mapping[str, Any]) -> DataBundle:
    """The data of a recipe as a stream: files below `data.root` (those of its folder `train`, if it has one), or a hub
    set; validation documents from the folder `validation`, else the first ones of the stream.

    Raises:
        ConfigError: a data set that cannot be streamed.
        DataError: nothing to read.
    """
    d = recipe.data
    if d.name not in ("corpus", "hf_corpus") or d.root is None:
        raise ConfigError(f"data.options.stream reads corpus and hf_corpus with a data.root, not {d.name} ({d.root})")
    spec, root = data_spec(d.name), str(d.root)
    options = {k: v for k, v in options.items() if k != "max_skipped"}
    validation = None
    if d.name == "hf_corpus" and not Path(root).expanduser().exists():
        shards = hub_shards(root, **options)
    else:
        folder = Path(root).expanduser()
        if not folder.exists():
            raise DataError(f"data.root={root} does not exist. Needed: {spec.needs}")
        parts = {name: folder / name for name in ("train", "validation") if (folder / name).is_dir()}
        shards = file_shards(parts.get("train", folder), **options)
        if "train" in parts and "validation" in parts:
            validation = [row for shard in file_shards(parts["validation"], **options) for row in shard()]
    if validation is None:
        validation, shards = hold_out(shards, batching.validation_documents)
    info = DataInfo(
        name=d.name,
        title=spec.title,
        task=spec.task,
        label_names=(),
        license=spec.license,
        source=root if d.name == "hf_corpus" else spec.source,
        track="full",
        protocol="stream",
        revision=root.partition("@")[2],
        sha256=hashlib.sha256(root.encode()).hexdigest(),
        sha256_of="the address: a stream is not read before the training",
        sizes={"validation": len(validation)},
        seed=d.seed,
    )
    return DataBundle(info, {"train": StreamSplit(shards), "validation": as_split(validation)})  # type: ignore[dict-item]


def shares(size: int, batch_size: int, rank: int, world: int) -> Iterator[list[int]]:
    """Batches of indices of this process, as many as of any other (sharded models run in step); one may be empty."""
    mine = np.arange(rank, size, world)
    for start in range(0, -(-size // world), batch_size):
        yield mine[start : start + batch_size].tolist()


def validate(
    model: Any, data: Any, batch_size: int, *, device: Any, precision: str = "fp32", rank: int = 0, world: int = 1
) -> dict[str, float]:
    """Metrics of a held-out dataset: `loss` (nats a token), `perplexity`, and `bits_per_byte` where the data has bytes.

    For MQAR the loss is of the questions, and `accuracy` their share that is answered right.

    Args:
        model: in any mode; it is put into eval mode and back.
        data: a WindowedText, or another dataset of `input_ids` and `labels` by index.
        batch_size: sequences of a forward pass.
        device: of the model.
        precision: "bf16" and "fp16" compute under autocast.
        rank, world: each process scores its share; the sums are added up.
    """
    was_training = model.training
    model.eval()
    exact = not hasattr(data, "scored_bytes")
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # nats, tokens, right
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.no_grad(), torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None):
        for indices in shares(len(data), batch_size, rank, world):
            batch = data.__getitems__(indices or [0])
            labels = batch["labels"][:, 1:]
            count = int((labels != IGNORED).sum()) if indices else 0
            if not count and world == 1:
                continue
            out = model(**{k: v.to(device) for k, v in batch.items()})
            if not count:
                continue
            totals[0] += out.loss.double() * count  # the model's loss is the mean over these labels
            totals[1] += count
            if exact:
                totals[2] += (out.logits[:, :-1].argmax(-1) == labels.to(device)).sum()
    model.train(was_training)
    if world > 1:
        torch.distributed.all_reduce(totals)
    nats, tokens, right = totals.tolist()
    loss = nats / max(tokens, 1)
    metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700))}
    if exact:
        return metrics | {"accuracy": right / max(tokens, 1)}
    return metrics | {"bits_per_byte": nats / (math.log(2) * max(data.scored_bytes, 1))}


class LanguageModeling(Objective):
    """Next-token prediction on packed documents, or on the questions of MQAR."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.batching, self._reader = split_options(recipe.data.options)
        self.tokens_per_step = 0

    def reader_options(self) -> dict[str, Any]:
        """Without the keys of `Batching`; MQAR, which has no documents, takes all."""
        return dict(self.recipe.data.options) if self.recipe.data.name == "mqar" else dict(self._reader)

    def load(self) -> Any:
        """The data; of a stream, only what validation needs is read."""
        return open_stream(self.recipe, self.batching, self._reader) if self.batching.stream else super().load()

    def tokenizer(self, bundle: Any) -> Any:
        """`train:N`, `bytes`, a folder or hub id, or the one beside the first weights; None for MQAR."""
        if hasattr(bundle["train"], "__getitems__"):
            if self.recipe.data.tokenizer is not None:
                raise ConfigError(f"data.tokenizer: {bundle.info.name} is made of tokens; leave it out")
            return None
        given = self.recipe.data.tokenizer
        if given is not None and (given == "bytes" or given.startswith("train:")):
            return build_lm_tokenizer(given, bundle["train"].content)
        from hybridzoo.training.build import build_tokenizer

        return build_tokenizer(self.recipe, bundle["train"])

    def datasets(self, bundle: Any, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """See `build_lm_datasets`."""
        if bundle.info.task != "text-generation":
            raise ConfigError(
                f"{self.recipe.model.name} does text-generation, but {bundle.info.name} is data for {bundle.info.task}"
            )
        if bundle["train"].kind == "preference":
            raise ConfigError(
                f"{bundle.info.name} holds pairs of answers: set training.objective: dpo to learn from them"
            )
        from accelerate import PartialState

        processes, t = PartialState(), self.recipe.training
        if tokenizer is not None:
            note_special_tokens(model, tokenizer)
        train, validation = build_lm_datasets(
            bundle.splits,
            tokenizer,
            model,
            self.batching,
            seed=t.seed,
            rank=processes.process_index,
            world=processes.num_processes,
        )
        length = getattr(getattr(train, "options", None), "sequence_length", self.batching.sequence_length)
        self.tokens_per_step = length * t.batch_size * t.gradient_accumulation * processes.num_processes
        return train, validation

    def evaluate(self, trainer: Any, dataset: Any) -> dict[str, float]:
        """See `validate`."""
        return validate(
            trainer.model,
            dataset,
            self.recipe.evaluation.batch_size,
            device=trainer.args.device,
            precision=self.recipe.training.precision,
            rank=trainer.args.process_index,
            world=trainer.args.world_size,
        )

    def log_entries(self, trainer: Any, seconds: float, steps: int) -> dict[str, float]:
        """Tokens per second of all processes since the last entry."""
        return {"tokens_per_sec": round(self.tokens_per_step * steps / seconds, 1)} if seconds > 0 and steps else {}

    def final_metrics(self, run: Any, trainer: Any) -> dict[str, float]:
        """Of the final weights, on this process alone."""
        return validate(
            trainer.model,
            trainer.eval_dataset,
            self.recipe.evaluation.batch_size,
            device=trainer.args.device,
            precision=self.recipe.training.precision,
        )


def note_special_tokens(model: Any, tokenizer: Any) -> None:
    """Generation ends and pads as the tokenizer does."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config in (model.config, getattr(model, "generation_config", None)):
            if config is not None and hasattr(config, name):
                setattr(config, name, getattr(tokenizer, name))
