"""Two turns of one conversation; the server remembers the first.

pip install websockets
python ws_client.py [URL]
"""

from __future__ import annotations

import sys

from websockets.sync.client import connect

FINISHED = "<<Response Finished>>"

url = sys.argv[1] if len(sys.argv) > 1 else "ws://localhost:8000"

with connect(url) as websocket:
    for turn in ("What is the capital of France?", "And of Italy?"):
        print("you:", turn)
        websocket.send(turn)
        print("bot: ", end="", flush=True)
        while (text := websocket.recv()) != FINISHED:
            print(text, end="", flush=True)
        print()
