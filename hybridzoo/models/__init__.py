"""One folder a family. Each folder's `__init__.py` only registers names; model code is imported at first use."""
