"""The helpers of this folder are importable by name (pytest runs with import-mode=importlib)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
