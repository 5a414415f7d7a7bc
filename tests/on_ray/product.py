"""The product on a Ray of the tests' own, seen from outside: its replicas, their processes and what they say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import requests

from tests.support.ray_cluster import EXAMPLES, SERVE, RayCluster


def replicas(url: str, metric: str, headers: dict[str, str] | None = None) -> dict[str, float]:
    """What each replica says of a metric."""
    page = requests.get(f"{url}/metrics", headers=headers, timeout=20).text
    found = re.findall(rf'^causerie:{metric}{{.*?replica="(\w+)"}} (\S+)$', page, re.MULTILINE)
    return {replica: float(value) for replica, value in found}


def pids(cluster: RayCluster, deployment: str) -> list[int]:
    found = []
    for pid in cluster.processes():
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        if f"ServeReplica:default:{deployment}".encode() in title:
            found.append(pid)
    return found


def kill(cluster: RayCluster, deployment: str, replica: str = "") -> None:
    """SIGKILL for the replicas of a deployment, or for the one of this name, which its log file has, too."""
    for pid in pids(cluster, deployment):
        if any(replica in str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()):
            os.kill(pid, signal.SIGKILL)


def socket_url(url: str, query: str = "") -> str:
    return url.replace("http", "ws", 1) + "/" + query


def story(url: str, tokens: int = 4000) -> requests.Response:
    return requests.post(f"{url}/?max_tokens={tokens}&ignore_eos=true", data="Hi", stream=True, timeout=60)


def deploy(cluster: RayCluster, *what: str) -> None:
    """Put an application or a config file in the place of what runs."""
    command = [str(SERVE), "run", f"--address={cluster.address}", "--non-blocking", *what]
    subprocess.run(command, cwd=EXAMPLES, env=cluster.environment, capture_output=True, timeout=90, check=True)
