"""What a command prints beside its output: warnings as one plain line each, and no progress bars of libraries."""

from __future__ import annotations

import sys
import warnings


def plain_warnings() -> None:
    """Show warnings as `warning: …` on stderr, without the line of code that raised them; silence transformers'
    loading bar.
    """
    from transformers.utils import logging

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show
    logging.disable_progress_bar()
