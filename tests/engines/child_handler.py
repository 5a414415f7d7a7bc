"""What the child of ``test_child`` answers by."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable


def handler() -> Callable[[object], object]:
    def handle(question: object) -> object:
        match question:
            case "fail":
                raise ValueError("src/file.cpp:12\nno such thing")
            case "print":
                print("on standard output")
                return sys.stdin.read()
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "sleep":
                time.sleep(0.3)
        return question

    return handle
