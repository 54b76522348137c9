"""Models in other forms: ONNX, torch.export, and the original implementation's checkpoint layout.

from hybridzoo.export import export_model
report = export_model(build_model("iformer_mini", pretrained=True), "iformer.onnx")
"""

from __future__ import annotations

from hybridzoo.export.checkpoints import Converted, convert_checkpoint
from hybridzoo.export.exporter import Check, ExportReport, export_model

__all__ = ["Check", "Converted", "ExportReport", "convert_checkpoint", "export_model"]
