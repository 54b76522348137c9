"""`export_model`: ONNX (torch.onnx, dynamo) and torch.export files with free batch size, checked against the model."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridzoo.errors import CheckpointError, ConfigError, HybridzooError, unknown
from hybridzoo.export._atomic import move_files, staging_folder
from hybridzoo.export.recurrent import one_op_per_layer, onnx_translations

FORMATS = {".onnx": "onnx", ".pt2": "torch"}
# Inputs of shape (B, T): their second axis may have any length.
SEQUENCE_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
MIN_OPSET = 20
# An ONNX file is a protobuf message, which ends at 2 GiB; larger weights lie beside it.
EXTERNAL_DATA_BYTES = 2_000_000_000
Run = Callable[[dict[str, Tensor]], list[Tensor]]  # an exported file
# Largest difference between file and model, relative to the largest output: two runtimes sum in different orders.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Check:
    """One comparison of the file with the model on inputs of sizes that were not exported."""

    shapes: dict[str, list[int]]
    max_abs_error: float
    scale: float  # largest absolute output of the model


@dataclass(frozen=True)
class ExportReport:
    """What was written and how close it is."""

    path: Path
    format: str
    bytes: int
    inputs: dict[str, list[str | int]]  # name -> axes; a word is a free size
    outputs: list[str]
    checks: list[Check] = field(default_factory=list)

    @property
    def max_abs_error(self) -> float:
        return max((c.max_abs_error for c in self.checks), default=float("nan"))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def _plain_module(model: Any, names: list[str]) -> nn.Module:
    """The model with its inputs by name and plain tensors as outputs, which both exporters can name."""
    wanted = model.export_outputs

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
            found = self.model(**inputs)
            return tuple(found[name] for name in wanted) if len(wanted) > 1 else found[wanted[0]]

    # torch.export reads the names of inputs from the signature and cannot write guards for those in **inputs.
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
    Plain.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return Plain()


def export_model(
    model: Any,
    path: str | Path,
    *,
    format: str | None = None,
    check: bool = True,
    inputs: Mapping[str, Tensor] | None = None,
) -> ExportReport:
    """Write a model for other runtimes: its `export_outputs` as a function of its inputs, with a free batch size.

    Text models also get a free sequence length. The file is run on other sizes than the exported ones and compared
    with the model. It appears at `path` only when it is complete and agrees.

    Args:
        model: a ZooModel; put into eval mode on the CPU for the export and given back as it was.
        path: file to write, `.onnx` or `.pt2`. ONNX weights over 2 GB go to `<path>.data` beside it.
        format: `"onnx"` or `"torch"`; read from the suffix if left out.
        check: run the file (ONNX: needs onnxruntime) and compare.
        inputs: what to trace with; `model.example_inputs(batch_size=2)` if left out.

    Raises:
        ConfigError: unknown format.
        CheckpointError: the model cannot be exported, an optional package is missing, or the file disagrees.
    """
    path = Path(path)
    if format is None and path.suffix not in FORMATS:
        raise ConfigError(f"cannot tell the format of {path}: end it in .onnx or .pt2, or give format='onnx'|'torch'")
    format = format or FORMATS[path.suffix]
    if format not in FORMATS.values():
        raise ConfigError(unknown("export format", format, FORMATS.values()))
    write, load = _FORMATS[format]
    device, training = next(model.parameters()).device, model.training
    model.eval().to("cpu")
    try:
        example = dict(inputs) if inputs is not None else model.example_inputs(batch_size=2)
        # A batch of one would be read as a fixed size.
        if any(tensor.shape[0] < 2 for tensor in example.values()):
            raise ConfigError(
                "export needs example inputs with at least two rows: a single one would be taken as a constant"
            )
        axes = {name: _axes(name, tensor) for name, tensor in example.items()}
        with staging_folder(path) as folder, torch.no_grad():
            part = folder / path.name
            try:
                write(_plain_module(model, list(example)), example, axes, part)
            except HybridzooError:
                raise
            except Exception as error:  # both exporters raise many unrelated classes
                what = f"{type(error).__name__}: {_first_lines(error)}"
                raise CheckpointError(f"{type(model).__name__} cannot be exported as {format}: {what}") from error
            checks = _compare(model, load(part), example) if check else []
            size = sum(file.stat().st_size for file in folder.iterdir())
            move_files(folder, path.parent, last=path.name)
    finally:
        model.to(device).train(training)
    return ExportReport(
        path=path, format=format, bytes=size, inputs=axes, outputs=list(model.export_outputs), checks=checks
    )


def _axes(name: str, tensor: Tensor) -> list[str | int]:
    free = ["batch", "sequence"] if name in SEQUENCE_INPUTS else ["batch"]
    return [free[i] if i < len(free) else size for i, size in enumerate(tensor.shape)]


def _dynamic(axes: Mapping[str, list[str | int]]) -> dict[str, dict[int, Any]]:
    dims = {word: torch.export.Dim(word) for shape in axes.values() for word in shape if isinstance(word, str)}
    # DYNAMIC (and not a named Dim) for the sequence: models bound it by their position table, which a named Dim without
    # the same bound refuses.
    dims = {word: torch.export.Dim.DYNAMIC if word == "sequence" else dim for word, dim in dims.items()}
    return {n: {i: dims[w] for i, w in enumerate(shape) if isinstance(w, str)} for n, shape in axes.items()}


def _first_lines(error: Exception, count: int = 3) -> str:
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:count])


# Formats ----------------------------------------------------------------------------------------------------------


def _program(model: nn.Module, example: dict[str, Tensor], axes: dict) -> Any:
    with one_op_per_layer():
        return torch.export.export(model, (), example, dynamic_shapes=_dynamic(axes))


def _write_torch(model: nn.Module, example: dict[str, Tensor], axes: dict, path: Path) -> None:
    torch.export.save(_program(model, example, axes), path)


def _load_torch(path: Path) -> Run:
    module = torch.export.load(path).module()

    def run(inputs: dict[str, Tensor]) -> list[Tensor]:
        found = module(**inputs)
        return [found] if isinstance(found, Tensor) else list(found)

    return run


def _write_onnx(model: Any, example: dict[str, Tensor], axes: dict, path: Path) -> None:
    _need("onnx", "onnxscript")
    names = {n: {i: w for i, w in enumerate(shape) if isinstance(w, str)} for n, shape in axes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes to its own developers
        program = torch.onnx.export(
            _program(model, example, axes),
            (),
            kwargs=example,
            dynamo=True,
            input_names=list(example),
            output_names=list(model.model.export_outputs),
            custom_translation_table=onnx_translations(),
            opset_version=MIN_OPSET,
            verbose=False,
        )
    assert program is not None
    _name_axes(program, names)
    program.save(path, external_data=_weight_bytes(model) > EXTERNAL_DATA_BYTES)


def _name_axes(program: Any, names: Mapping[str, Mapping[int, str]]) -> None:
    """Give the free axes readable names in the graph's signature (the exporter numbers some: `s77`)."""
    for value in program.model.graph.inputs:
        for axis, word in names.get(value.name, {}).items():
            dims = list(value.shape)
            if str(dims[axis]) != word:
                program.rename_axes({str(dims[axis]): word})


def _weight_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def _load_onnx(path: Path) -> Run:
    _need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Tensor]) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session.run(None, {k: v.numpy() for k, v in inputs.items()})]

    return run


_FORMATS: dict[str, tuple[Callable[..., None], Callable[[Path], Run]]] = {
    "onnx": (_write_onnx, _load_onnx),
    "torch": (_write_torch, _load_torch),
}


def _need(*packages: str) -> None:
    import importlib

    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise CheckpointError(
                f"ONNX export needs {package}, which cannot be imported ({error}): pip install 'hybridzoo[export]'"
            ) from error


# Check ------------------------------------------------------------------------------------------------------------


def _compare(model: Any, run: Run, example: dict[str, Tensor]) -> list[Check]:
    checks = []
    for inputs in _other_sizes(model, example):
        outputs = model(**inputs)
        pairs = [(a.float(), outputs[name].float()) for a, name in zip(run(inputs), model.export_outputs, strict=True)]
        error = max((found - expected).abs().max().item() for found, expected in pairs)
        scale = max(expected.abs().max().item() for _, expected in pairs)
        shapes = {name: list(tensor.shape) for name, tensor in inputs.items()}
        if not error <= TOLERANCE.get(next(model.parameters()).dtype, 1e-4) * max(scale, 1.0):
            raise CheckpointError(
                f"the exported file disagrees with the model: {error:.2e} at inputs {shapes} (outputs up to "
                f"{scale:.2g}); nothing was written"
            )
        checks.append(Check(shapes=shapes, max_abs_error=error, scale=scale))
    return checks


def _other_sizes(model: Any, example: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Inputs with one and three rows, and for text with a shorter and a longer sequence than the exported one."""
    variants = [model.example_inputs(batch_size=rows) for rows in (1, 3)]
    if any({n: t.shape[1:] for n, t in v.items()} != {n: t.shape[1:] for n, t in example.items()} for v in variants):
        # other inputs than the model's own were exported: rows of those
        variants = [{n: torch.cat((t, t))[:rows] for n, t in example.items()} for rows in (1, 3)]
    lengths = {t.shape[1] for name, t in example.items() if name in SEQUENCE_INPUTS}
    if not lengths:
        return variants
    length = lengths.pop()
    longest = int(getattr(model.config, "max_length", None) or length)
    return [_with_length(variants[0], max(2, length // 2)), _with_length(variants[1], min(longest, length + 5))]


def _with_length(inputs: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """Cut the (B, T) inputs to `length`, or lengthen them by repeating their first column."""
    resized = {}
    for name, tensor in inputs.items():
        if name not in SEQUENCE_INPUTS:
            resized[name] = tensor
            continue
        more = length - tensor.shape[1]
        filler = tensor[:, :1].expand(-1, max(more, 0))  # the first token is real in every row: never padding
        resized[name] = torch.cat([filler, tensor], dim=1)[:, :length].contiguous()
    return resized
