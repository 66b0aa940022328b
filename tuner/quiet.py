"""Libraries that draw progress bars and log advice are silenced while a model loads; their errors are not."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no log lines below ERROR, and not the warning that PEFT earns from transformers."""
    from transformers.utils import logging as library

    bars, level = library.is_progress_bar_enabled(), library.get_verbosity()
    library.disable_progress_bar()
    library.set_verbosity_error()
    bitsandbytes = logging.getLogger("bitsandbytes")
    before = bitsandbytes.level
    # On a CPU it warns at import that an optional kernel package is missing; the built-in kernels are used.
    bitsandbytes.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 asks for a property that transformers 5 has renamed and keeps until 6.
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
            )
            yield
    finally:
        bitsandbytes.setLevel(before)
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()
