"""Files to documents: bytes -> text with its title, headings and pages.

The only code that knows file formats. One module per format family, each a plain function of the file's bytes; `Loader`
runs them in one long-lived child process with limits on time, memory and output, because parsers of other people's
files crash, loop and swell, and the index must go on with the next file.
"""

from __future__ import annotations

from indexer.loaders.formats import SUPPORTED, format_of, is_supported
from indexer.loaders.limits import Limits
from indexer.loaders.parsed import Parsed
from indexer.loaders.sandbox import Loader

__all__ = ["SUPPORTED", "Limits", "Loader", "Parsed", "format_of", "is_supported"]
