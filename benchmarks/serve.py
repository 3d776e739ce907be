"""How many requests a second `blemish serve` answers, how soon, and in how much memory.

    python benchmarks/serve.py part.blemish|part.onnx|part.xml [--clients 1,8,64] [--seconds 60] [--steady 180]
                               [--query heatmap=png]

The server is a process of its own, with its record in an SQLite file. Each client has a connection and
sends its next picture (a JPEG file of 512x512 pixels) when the last one is answered; after a 429 it
waits as Retry-After says. Prints, for each number of clients: requests a second, milliseconds until
half of them and 99 of 100 were answered, how many were answered with anything but 200 or 429, how many
with 429, the memory of the server, and how busy the clients were: near 100 %, they would be what is
measured. Before that, the server's memory when it has started; at last, that of ten equal parts of
`--steady` seconds with the most clients, and by how much it grew each minute in the later half.
"""

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from deploy import write_pictures

PARTS = 10
"""Of the time that memory is watched for."""
WARM = 3.0
"""Seconds before anything is counted."""


@dataclass
class Load:
    """What came of some clients' requests."""

    seconds: list[float] = field(default_factory=list)
    """Until each was answered with 200."""
    statuses: Counter[int] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    """Of the server, in bytes, ten times a second."""


async def answer(reader: asyncio.StreamReader) -> tuple[int, float]:
    """The status of an answer, and for how many seconds it asks to wait; its body is read."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
    wait = re.search(rb"retry-after: (\d+)", head)
    return int(head[9:12]), float(wait[1]) if wait else 0.0


async def client(port: int, requests: list[bytes], until: float, load: Load) -> None:
    """Asks again and again; what is asked before the server is warm does not count."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    counted_from, number = time.perf_counter() + WARM, 0
    while time.perf_counter() < until:
        start = time.perf_counter()
        writer.write(requests[number % len(requests)])
        status, wait = await answer(reader)
        number += 1
        if start >= counted_from:
            load.statuses[status] += 1
            if status == 200:
                load.seconds.append(time.perf_counter() - start)
        await asyncio.sleep(wait)
    writer.close()


@asynccontextmanager
async def watched(process: psutil.Process, load: Load) -> AsyncIterator[None]:
    """Nothing; while the block runs, the server's memory is looked at."""

    async def look() -> None:
        while True:
            load.memory.append(process.memory_info().rss)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()


async def measure(clients: int, seconds: float, server: tuple[int, psutil.Process], requests: list[bytes]) -> str:
    """A line of the table."""
    (port, process), load = server, Load()
    before, busy = process.memory_info().rss, time.process_time()
    until = time.perf_counter() + WARM + seconds
    async with watched(process, load):
        await asyncio.gather(*(client(port, requests[at:] + requests[:at], until, load) for at in range(clients)))
    busy = 100 * (time.process_time() - busy) / (WARM + seconds)
    half, most = np.quantile(load.seconds, (0.5, 0.99)) * 1000
    errors = sum(times for status, times in load.statuses.items() if status not in (200, 429))
    memory = (size / 1e6 for size in (before, process.memory_info().rss, max(load.memory)))
    return (
        f"{clients:7} {len(load.seconds) / seconds:10.1f} {half:8.1f} {most:8.1f} {errors:7} {load.statuses[429]:6} "
        f"{' '.join(f'{size:8.0f}' for size in memory)} {busy:9.0f} %"
    )


async def watch_memory(clients: int, seconds: float, server: tuple[int, psutil.Process], requests: list[bytes]) -> str:
    """Whether the server's memory grows under steady load."""
    (port, process), load = server, Load()
    until = time.perf_counter() + seconds
    async with watched(process, load):
        await asyncio.gather(*(client(port, requests[at:] + requests[:at], until, load) for at in range(clients)))
    parts = [part.mean() / 1e6 for part in np.array_split(np.array(load.memory, np.float64), PARTS)]
    later = parts[PARTS // 2 :]
    growth = np.polyfit(np.arange(len(later)) * seconds / PARTS / 60, later, 1)[0]
    shown = " ".join(f"{size:.0f}" for size in parts)
    return (
        f"{clients} clients for {seconds:g} s: {dict(load.statuses)} by status; memory (MB) {shown}; "
        f"in the later half {growth:+.1f} MB a minute"
    )


def main() -> None:
    """Starts the server, loads it, prints, stops it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--steady", type=float, default=180, help="seconds of steady load; 0 for none")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--query", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = write_pictures(Path(folder) / "pictures", options.pictures)
        head = f"POST /predict?{options.query} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: "
        bodies = [file.read_bytes() for file in files]
        requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
        words = ["serve", f"part={options.artifact}", "--port", "0", "--record", f"{folder}/record.sqlite"]
        command = [sys.executable, "-u", "-m", "blemish", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            said = ""
            while "http://" not in said:
                if not (line := process.stdout.readline()):
                    raise SystemExit("the server did not start")
                said += line
            server = int(re.search(r"http://127\.0\.0\.1:(\d+)", said)[1]), psutil.Process(process.pid)
            print(f"memory at the start: {server[1].memory_info().rss / 1e6:.0f} MB")
            print("                    milliseconds                    server's memory (MB)")
            print("clients requests/s     half       99  errors    429   before    after     most  clients busy")
            for clients in map(int, options.clients.split(",")):
                print(asyncio.run(measure(clients, options.seconds, server, requests)), flush=True)
            if options.steady:
                most = max(map(int, options.clients.split(",")))
                print(asyncio.run(watch_memory(most, options.steady, server, requests)), flush=True)
            process.terminate()


if __name__ == "__main__":
    main()
