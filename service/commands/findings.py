"""What `tandem doctor` finds, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from service.commands.console import out, out_json


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `ok` or not, what was seen, and what to do when it is not."""

    check: str
    ok: bool
    found: str
    do: str = ""


def show_findings(findings: Sequence[Finding], *, as_json: bool) -> bool:
    """Print them; True when all is well."""
    healthy = all(finding.ok for finding in findings)
    if as_json:
        out_json({"healthy": healthy, "checks": [asdict(finding) for finding in findings]})
        return healthy
    for finding in findings:
        out(f"{'ok ' if finding.ok else 'BAD'} {finding.check:13} {finding.found}")
        if finding.do and not finding.ok:
            out(f"{'':17} Do: {finding.do}")
    return healthy
