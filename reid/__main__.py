"""The process `reid`: run the command line, then end without tidying up what the system tidies anyway.

A query lives for a second or two. Collecting garbage while modules are imported, and taking modules apart at the end,
would be a tenth of that each. Nor would the usual end be safe while a model is being compiled on a thread of its own
for photos that turn out to be unreadable: the interpreter would cut that thread short, and the process with it.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading

YOUNG = (
    100_000  # new objects until the collector looks for cycles; Python's own 700 is reached hundreds of times at start
)


def main() -> None:
    """Run `reid` and leave with its exit code; never returns."""
    gc.set_threshold(YOUNG, 20, 20)
    from reid.cli import app

    code = 0
    try:
        app()
    except SystemExit as end:
        code = _code(end)
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter would: wait for threads that are no daemons,
    atexit._run_exitfuncs()  # and do what was asked to be done at the end
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # whoever read it has gone
            code = code or 1
    os._exit(code)


def _code(end: SystemExit) -> int:
    """As the interpreter would: none is success, a text is said and counts as 1."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code
    print(end.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
