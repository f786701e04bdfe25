"""A few hosts on a slow network, made of network namespaces: for benchmarks, as root on Linux."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType

_MINE = f"signvr-{os.getpid()}"  # two benchmarks at once do not share a network
_SWITCH = f"{_MINE}-switch"


class NetworkUnavailableError(RuntimeError):
    """This machine does not let us make network namespaces; the message says why."""


class Network:
    """Hosts joined by a switch; each link has the same rate in both directions.

    Every host is a network namespace with one interface, ``eth0``, shaped by ``tc tbf`` at both of its ends.

    Args:
        hosts: how many.
        rate: of each link in the words of ``tc``, such as ``"100mbit"``; None for no limit.

    Raises:
        NetworkUnavailableError: on entry, with the reason.
    """

    def __init__(self, hosts: int, rate: str | None = None) -> None:
        self.rate = rate
        self.names = [f"{_MINE}-{number}" for number in range(hosts)]
        self.addresses = [f"10.77.0.{number + 1}" for number in range(hosts)]

    def __enter__(self) -> Network:
        if sys.platform != "linux" or os.geteuid() != 0:
            raise NetworkUnavailableError("network namespaces need Linux and root")
        for tool in ("ip", "tc"):
            if shutil.which(tool) is None:
                raise NetworkUnavailableError(
                    f"network namespaces need the command {tool!r} (Debian: iproute2)"
                )
        self._remove()
        try:
            self._make()
        except subprocess.CalledProcessError as error:
            self._remove()
            raise NetworkUnavailableError(
                f"{' '.join(error.cmd)!r} is not allowed here: {error.stderr.strip()}"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _make(self) -> None:
        _ip("netns", "add", _SWITCH)
        _ip("-n", _SWITCH, "link", "add", "br0", "type", "bridge")
        _ip("-n", _SWITCH, "link", "set", "br0", "up")
        for number, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            port = f"port{number}"
            _ip("netns", "add", name)
            _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", _SWITCH)
            _ip("-n", _SWITCH, "link", "set", port, "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
            if self.rate is not None:
                for space, device in ((name, "eth0"), (_SWITCH, port)):
                    shape = ["tbf", "rate", self.rate, "burst", "256kb", "latency", "400ms"]
                    _run(["tc", "-n", space, "qdisc", "add", "dev", device, "root", *shape])

    def _remove(self) -> None:
        for name in (*self.names, _SWITCH):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def bytes_sent(self, host: int) -> int:
        """What the interface of a host has sent, headers included."""
        path = "/sys/class/net/eth0/statistics/tx_bytes"
        command = ["ip", "netns", "exec", self.names[host], "cat", path]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    def start(
        self, script: Sequence[str], port: int = 29400, **environment: str
    ) -> list[subprocess.Popen[str]]:
        """Start a Python script on every host, one rank each, with torchrun's variables; stdout is a pipe."""
        processes = []
        for rank, name in enumerate(self.names):
            variables = {
                **os.environ,
                **torchrun_variables(rank, len(self.names), self.addresses[0], port),
                "GLOO_SOCKET_IFNAME": "eth0",
                **environment,
            }
            command = ["ip", "netns", "exec", name, sys.executable, *script]
            processes.append(subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True))
        return processes


def torchrun_variables(rank: int, nodes: int, address: str, port: int = 29400) -> dict[str, str]:
    """What torchrun tells the one process of each node; one thread."""
    return {
        "RANK": str(rank),
        "GROUP_RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(nodes),
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "benchmark",
        "OMP_NUM_THREADS": "1",
    }


def wait_for(processes: Sequence[subprocess.Popen[str]], timeout: float) -> list[str]:
    """What each process printed; kills all where one fails or takes longer than ``timeout`` seconds."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
        for rank, process in enumerate(processes):
            if process.returncode != 0:
                raise RuntimeError(f"rank {rank} ended with status {process.returncode}")
        return outputs
    finally:
        for process in processes:
            process.kill()


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
