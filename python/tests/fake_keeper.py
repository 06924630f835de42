#!/usr/bin/env python3
"""Stands in for `firesteel poc keep`: a fake server, until its input closes."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fake_server import FakeServer


def main() -> None:
    assert sys.argv[1:] == ["poc", "keep"], sys.argv
    options = json.loads(sys.stdin.readline())
    folder = Path(options["workspace"] or tempfile.mkdtemp(prefix="firesteel-poc-"))
    told = Path(os.environ["FAKE_KEEPER_TOLD"])
    with told.open("a") as file:
        print(json.dumps({**options, "folder": str(folder)}), file=file)
    if "broken" in options["sites"]:
        failed = {"event": "failed", "message": "broken has ended", "hint": "look"}
        print(json.dumps(failed), flush=True)
        return
    kit = folder / "kits/lead"
    server = FakeServer(kit)
    if "slow" in options["sites"]:
        server.end = None
    print(json.dumps({"event": "ready", "admin": str(kit)}), flush=True)
    sys.stdin.read()
    server.close()
    if options["workspace"] is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
