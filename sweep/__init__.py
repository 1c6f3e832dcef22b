"""The orchestrator: decides what to try, hands it to workers, keeps what they say.

    from sweep import load_study
    load_study("lora_rank").trials
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweep.report.notebook import load_study as load_study

__all__ = ["load_study"]


def __getattr__(name: str) -> Any:
    """`load_study`, when it is first asked for: `import sweep` alone loads nothing."""
    if name != "load_study":
        raise AttributeError(f"module 'sweep' has no attribute {name!r}")
    from sweep.report.notebook import load_study

    return load_study
