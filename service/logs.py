"""Log lines on standard error: one JSON object each for machines, plain text for people.

A line of a request carries its id. No line carries a question or a key: what is logged of a request is chosen in
service/api/observing.py, and headers and bodies are logged nowhere.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from service.observation import current

LogFormat = Literal["auto", "text", "json"]
# These tell at level info what is of no use to whoever runs the service.
NOISY = ("httpx", "faiss.loader", "sentence_transformers", "transformers", "uvicorn.error")


class JsonFormatter(logging.Formatter):
    """time (UTC), level, logger, message; what a line brings as `fields`; `exception` with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without any line break: JSON escapes them."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if observation := current():
            line["request_id"] = observation.id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def set_up_logs(level: str, form: LogFormat) -> None:
    """Log to standard error from here on; `auto` is text on a terminal and JSON elsewhere."""
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel("WARNING")
