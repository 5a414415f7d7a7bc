"""Print an answer as it comes.

pip install requests
python stream_client.py [URL] [PROMPT]
"""

from __future__ import annotations

import sys
from urllib.parse import quote

import requests

url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://localhost:8000"
prompt = sys.argv[2] if len(sys.argv) > 2 else "Tell me about the sea, in one paragraph."

with requests.post(f"{url}/?prompt={quote(prompt)}", stream=True) as response:
    if response.status_code != 200:
        sys.exit(response.text)
    for text in response.iter_content(chunk_size=None, decode_unicode=True):
        print(text, end="", flush=True)
    print()
