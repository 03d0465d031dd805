"""How well the testbed keeps what it is told of a wire: round trips and transfers, raw TCP sockets, beside the setting.

Run `python wires.py` in bench/, as root.
"""

import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import testbed
from common import load, machine, quantile, write_results
from hyps.terminal import table
from testbed import Device, Layout, Machine, Wire

CASES = ((0, 57), (0, 1000), (1, 100), (1, 1000), (5, 200), (28, 57), (28, 1000), (100, 20), (1, None))
"""Milliseconds one way, and Mbit/s; None: no limit."""
TRIPS = 200
SECONDS = 3.0

_SERVER = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 9000))
print("listening", flush=True)
connection, _ = server.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for _ in range(int(sys.argv[2])):
    connection.sendall(connection.recv(1))
total, half = 0, float(sys.argv[3]) / 2
connection.recv(1)
start_s = begin_s = time.perf_counter()
while data := connection.recv(1 << 20):
    if time.perf_counter() - start_s < half:
        begin_s = time.perf_counter()
    else:
        total += len(data)
print(total / (time.perf_counter() - begin_s))
"""
"""The first half of a transfer is left out: connections begin slowly."""
_CLIENT = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 9000)) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(int(sys.argv[2])):
        start_s = time.perf_counter()
        connection.sendall(b"x")
        connection.recv(1)
        print(time.perf_counter() - start_s)
        time.sleep(0.002)
    end_s, data = time.perf_counter() + float(sys.argv[3]), bytes(1 << 18)
    while time.perf_counter() < end_s:
        connection.sendall(data)
"""


def main() -> None:
    """Measure every case and print the table."""
    results = list(measure())
    write_results("wires", {"machine": machine(), "load": load(), "results": results})
    rows = [
        (
            f"{result['delay_s'] * 1e3:g}",
            "-" if result["bytes_per_s"] is None else f"{result['bytes_per_s'] * 8 / 1e6:g}",
            f"{1e3 * (statistics.median(result['trips_s']) / 2 - result['delay_s']):.2f}",
            f"{1e3 * (quantile(result['trips_s'], 0.95) / 2 - result['delay_s']):.2f}",
            f"{result['measured_bytes_per_s'] * 8 / 1e6:.0f}",
        )
        for result in results
    ]
    headers = ("delay ms", "Mbit/s", "over the delay, median ms", "95th percentile", "transfer Mbit/s")
    print(table(rows, headers, "rrrrr", 120))


def measure() -> Iterator[dict[str, Any]]:
    """Yield what each case gives."""
    for delay_ms, rate in CASES:
        bytes_per_s = None if rate is None else rate * 1e6 / 8
        layout = Layout({"a": Machine(), "b": Machine()}, (Wire("a", "b", bytes_per_s, delay_s=delay_ms / 1e3),))
        with testbed.build(layout) as devices:
            trips_s, measured = transfer(devices["a"], devices["b"])
        yield {
            "delay_s": delay_ms / 1e3,
            "bytes_per_s": bytes_per_s,
            "trips_s": trips_s,
            "measured_bytes_per_s": measured,
        }


def transfer(client: Device, server: Device) -> tuple[list[float], float]:
    """Return the seconds of round trips of a byte, and the bytes per second of a transfer."""
    words = [server.address, TRIPS, SECONDS]
    with server.popen([sys.executable, "-c", _SERVER, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        done = client.run([sys.executable, "-c", _CLIENT, *words], check=True, stdout=subprocess.PIPE, text=True)
        return [float(line) for line in done.stdout.split()], float(process.stdout.readline())


if __name__ == "__main__":
    main()
