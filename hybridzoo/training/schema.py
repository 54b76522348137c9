"""The typed form of a recipe: every section, key, type and default. `recipe.py` reads YAML into it.

A key that a recipe leaves out has the value written here. `null` in YAML is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING


@dataclass
class ModelSection:
    """What is trained. At most one of `pretrained`, `weights` and `backbone` says where its first weights come from."""

    name: str = MISSING  # a registered model, with or without a tag: `hybridzoo list`
    pretrained: bool = False  # start from the registered weights of that name
    weights: str | None = None  # start from this folder, hub id or weights file
    backbone: str | None = None  # folder or hub id of an AutoModel that becomes the encoder (text families)
    config: dict[str, Any] = field(default_factory=dict)  # values of the model's own configuration class


@dataclass
class DataSection:
    """What it is trained on; see docs/data.md."""

    name: str = MISSING  # a data set's name, as `hybridzoo.data.list_data()` gives it
    root: str | None = None  # folder or file where it lies; null = embedded, or the data set's usual place
    protocol: str | None = None  # which split rule, where the data set knows several
    seed: int = 42  # of the splits
    tokenizer: str | None = None  # folder or hub id; `train:8000`: a BPE of that size on the train split; `bytes`
    options: dict[str, Any] = field(default_factory=dict)  # further keywords of the data set's reader, e.g. limit


@dataclass
class OptimizerSection:
    """AdamW."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8


@dataclass
class AugmentSection:
    """Training augmentation of images, timm's names; what is left out is off."""

    scale: list[float] | None = None  # area of the random crop, e.g. [0.08, 1.0]; null = no random crop
    ratio: list[float] | None = None  # its aspect ratio, e.g. [0.75, 1.3333]
    hflip: float = 0.0  # probability of a horizontal flip
    color_jitter: float | None = None
    auto_augment: str | None = None  # e.g. rand-m9-mstd0.5-inc1
    random_erasing: float = 0.0  # probability, pixel mode, one rectangle
    interpolation: str | None = None  # of the random crop: random, bilinear, bicubic; null = the model's own
    padding_crop: int = 0  # pad by so many pixels, then crop at a random place
    repeats: int = 0  # repeated augmentation: each image so many times an epoch's batch, as timm's aug_repeats


@dataclass
class BoxAugmentSection:
    """Training augmentation of images with boxes (detectors); what is left out is off. docs/detection.md explains."""

    hflip: float = 0.0  # probabilities of mirroring
    vflip: float = 0.0
    rot90: bool = False  # turn by a random multiple of 90 degrees
    multi_scale: list[int] = field(default_factory=list)  # short sides in pixels, one is drawn
    max_size: int | None = None  # of the long side with multi_scale; null = the model's longest_edge
    detr_crop: bool = False  # half of the images: resize to 400, 500 or 600, crop 384 to 600
    crop_scale: list[float] | None = None  # area of a random crop, e.g. [0.3, 1.0]
    lsj: list[float] | None = None  # factors of large-scale jitter, e.g. [0.1, 2.0]
    copy_paste: float = 0.0  # probability of pasting objects of another image
    photometric: float = 0.0  # strength of brightness, contrast and saturation changes
    oversample: float | None = None  # repeat images of classes in fewer than this share of the images, e.g. 0.001


@dataclass
class TrainingSection:
    """How it is trained."""

    # Length. A step is one update of the weights.
    epochs: float = 1.0  # passes over the train split, warm-up included, cool-down not
    max_steps: int | None = None  # stop after so many steps; the schedule then spans them instead of the epochs
    batch_size: int = 32  # samples per device and forward pass
    gradient_accumulation: int = 1  # forward passes per step; processes x batch_size x this = samples per step
    length_warmup_ratio: float = 0.0  # share of all steps in which texts are cut, to a length that doubles from
    length_warmup_start: int = 64  # so many tokens on; where one token among thousands decides, it is found sooner
    # Learning rate.
    learning_rate: float = 1e-3
    min_learning_rate: float = 0.0  # where cosine and linear end
    warmup_epochs: float = 0.0  # linear warm-up; or
    warmup_ratio: float = 0.0  # as a share of all steps
    warmup_learning_rate: float = 0.0  # where the warm-up starts
    warmup_power: float = 1.0  # the warm-up rises with this power of its progress
    cooldown_epochs: float = 0.0  # more epochs at min_learning_rate after `epochs`
    scheduler: Literal["cosine", "linear", "constant", "wsd", "step"] = "cosine"  # wsd: warm-up, stable, decay
    decay_ratio: float = 0.2  # wsd: the last share of all steps, falling linearly to min_learning_rate
    milestones: list[float] = field(default_factory=list)  # step: epochs after which the rate is multiplied by
    gamma: float = 0.1  # this
    # Factors on the rate of parameters whose name holds the key as whole parts, {backbone: 0.1}; the longest counts.
    lr_scales: dict[str, float] = field(default_factory=dict)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    weight_decay: float = 0.0
    no_decay_norm_bias: bool = True  # one-dimensional parameters, biases and the model's own list get no decay
    layer_decay: float | None = None  # factor on the learning rate per layer group, from the head downwards
    clip_grad_norm: float | None = None
    # Loss and augmentation.
    objective: Literal["default", "dpo"] = "default"  # dpo: language models on pairs of answers, see docs/training.md
    dpo_beta: float = 0.1  # how much the distance to the first weights costs
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    mixup: float = 0.0  # alpha of the Beta distribution
    cutmix: float = 0.0
    mixup_prob: float = 1.0  # probability that a batch is mixed at all
    mixup_switch_prob: float = 0.5  # probability of cutmix where both are on
    augment: AugmentSection = field(default_factory=AugmentSection)
    box_augment: BoxAugmentSection = field(default_factory=BoxAugmentSection)
    ema_decay: float | None = None  # keep an exponential moving average of the weights, evaluate and save that
    # Machine.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    auxiliary_heads: bool = True  # of detectors: keep what only training uses in the final weights
    weights_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the final weights, which are measured as saved
    gradient_checkpointing: bool = False
    freeze_backbone: bool = False
    compile: bool = False
    cuda_graphs: bool = False  # record forward and backward once per shape, replay them: for small models on a GPU
    channels_last: bool = False
    seed: int = 0
    deterministic: bool = False  # only deterministic kernels; an op that has none raises
    num_workers: int = 0  # processes that load data
    # Evaluation during the training, checkpoints, logs.
    eval_every: int | float | str = 1  # a number of epochs (0.5), or a text such as "200 steps"; 0 = only at the end
    save_every: int | float | str = 1  # the same, for checkpoints
    save_total_limit: int | None = 2  # checkpoints kept; the best one is kept beside them
    early_stopping_patience: int | None = None  # stop after so many evaluations without improvement
    select_best: bool = False  # the final model is the best evaluated one, not the last
    log_every: int = 50  # steps
    report_to: list[str] = field(default_factory=list)  # tensorboard, trackio, wandb; log.jsonl is always written
    calibrate_temperature: bool = False  # fit one temperature on the validation split and store it in the config


@dataclass
class EvaluationSection:
    """What is measured."""

    tasks: list[str] = field(default_factory=list)  # run at the end; `hybridzoo eval --help`
    batch_size: int = 64
    # Of the validation split. Classifiers: accuracy, loss, f1_macro, f1_weighted, balanced_accuracy; language models:
    # loss, bits_per_byte, perplexity, accuracy (of MQAR).
    metric: str = "accuracy"


@dataclass
class Recipe:
    """One training run, complete. Made by `load_recipe`."""

    title: str = ""
    paper: str = "ours"  # where the hyper-parameters come from
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
