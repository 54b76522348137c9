"""Data sets by name: readers, seeded splits, transforms and collators.

    from hybridzoo.data import load_data
    bundle = load_data("vader")
    bundle.info.label_names, len(bundle["train"]), bundle["train"][0]

Importing this package imports neither torch nor timm. It knows no model.
"""

from hybridzoo.data.base import DataBundle, DataInfo, DataWarning, Skipped, Split
from hybridzoo.data.catalog import DataSpec, data_spec, list_data, load_data

__all__ = [
    "DataBundle",
    "DataInfo",
    "DataSpec",
    "DataWarning",
    "Skipped",
    "Split",
    "data_spec",
    "list_data",
    "load_data",
]
