"""Ways of getting a tensor to another process and back: links of HyPS, and those that they are measured against.

Each is a pair of functions: one that serves in a process of its own, one that returns what the driver calls. `echo`
brings the tensor there and back; `stream` sends it many times and returns when the other side has had all.
"""

import contextlib
import importlib.util
import itertools
import queue
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zmq

from hyps.adapters.links import Heard, Links, Opened
from hyps.adapters.zmq_links import ARENA_NBYTES, ZmqLinks

WAIT_S = 60.0
_HEAD = struct.Struct("<cQ")
_UNDER_WAY_NBYTES = 32 * 2**20
_ANSWER = b"all"


class Caller(Protocol):
    """The driver's side."""

    def echo(self, data: memoryview) -> None:
        """Send a tensor and take it back."""

    def stream(self, data: memoryview, count: int) -> None:
        """Send a tensor `count` times; return when all have arrived."""

    def close(self) -> None:
        """Leave."""


@dataclass(frozen=True)
class Rival:
    """One way."""

    name: str
    serve: Callable[[str], None]
    """Prints an address, then serves until it is ended."""
    call: Callable[[str], Caller]
    """Takes the address."""
    missing: Callable[[], str] = lambda: ""
    """What has to be installed; empty: nothing."""


# Raw sockets.


def serve_raw(_: str) -> None:
    """Send back, or swallow, what comes over one TCP connection, in one buffer that is used again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"{listener.getsockname()[1]}", flush=True)
        peer, _ = listener.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head, buffer = memoryview(bytearray(_HEAD.size)), memoryview(bytearray(2**25))
    while True:
        _fill(peer, head)
        kind, nbytes = _HEAD.unpack(head)
        _fill(peer, buffer[:nbytes])
        if kind == b"e":
            _put(peer, kind, buffer[:nbytes])
        elif kind == b"l":
            peer.sendall(_ANSWER)


class Raw:
    """See `serve_raw`."""

    def __init__(self, port: str) -> None:
        self._peer = socket.create_connection(("127.0.0.1", int(port)), timeout=WAIT_S)
        self._peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(2**25))

    def echo(self, data: memoryview) -> None:
        """See `Caller`."""
        _put(self._peer, b"e", data)
        _fill(self._peer, self._buffer[: _HEAD.size])
        _fill(self._peer, self._buffer[: len(data)])

    def stream(self, data: memoryview, count: int) -> None:
        """See `Caller`."""
        for index in range(count):
            _put(self._peer, b"l" if index == count - 1 else b"s", data)
        _fill(self._peer, self._buffer[: len(_ANSWER)])

    def close(self) -> None:
        """See `Caller`."""
        self._peer.close()


def _put(peer: socket.socket, kind: bytes, data: memoryview) -> None:
    head = _HEAD.pack(kind, len(data))
    if len(data) < 65536:
        peer.sendall(b"".join((head, data)))
    else:
        peer.sendall(head)
        peer.sendall(data)


def _fill(peer: socket.socket, buffer: memoryview) -> None:
    while buffer:
        count = peer.recv_into(buffer)
        if not count:
            sys.exit()
        buffer = buffer[count:]


# HyPS.


def serve_hyps(address: str, arena_nbytes: int = ARENA_NBYTES) -> None:
    """Send back, or swallow, what comes over links; arrays lie on what they hand out."""
    with ZmqLinks(arena_nbytes=arena_nbytes) as links:
        print(links.listen(address), flush=True)
        while True:
            event = links.receive(1.0)
            if not isinstance(event, Heard):
                continue
            kind, frame = event.frames
            np.frombuffer(frame, np.uint8)
            if kind == b"e":
                links.send(event.link, event.frames)
            elif kind == b"l":
                links.send(event.link, [_ANSWER])
            del event, frame


class Hyps:
    """See `serve_hyps`."""

    def __init__(self, address: str, arena_nbytes: int = ARENA_NBYTES) -> None:
        self._links: Links = ZmqLinks(arena_nbytes=arena_nbytes)
        self._link = self._links.connect(address)
        _until(self._links, Opened)

    def echo(self, data: memoryview) -> None:
        """See `Caller`."""
        self._links.send(self._link, [b"e", data])
        _until(self._links, Heard)

    def stream(self, data: memoryview, count: int) -> None:
        """See `Caller`."""
        links, link = self._links, self._link
        for index in range(count):
            links.send(link, [b"l" if index == count - 1 else b"s", data], token=index)
            while links.backlog_nbytes(link) > _UNDER_WAY_NBYTES:
                links.receive(1.0)
        _until(links, Heard)

    def close(self) -> None:
        """See `Caller`."""
        self._links.close()


def _until(links: Links, kind: type[Heard] | type[Opened]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not isinstance(links.receive(1.0), kind):
        if time.monotonic() > deadline_s:
            raise TimeoutError


# Plain pyzmq.


def serve_zmq(address: str) -> None:
    """Send back, or swallow, what comes to a ROUTER, without copying."""
    router = zmq.Context.instance().socket(zmq.ROUTER)
    router.bind(address)
    print(router.get_string(zmq.LAST_ENDPOINT).rstrip("\0"), flush=True)
    while True:
        peer, kind, data = router.recv_multipart(copy=False)
        np.frombuffer(data.buffer, np.uint8)
        if kind.bytes == b"e":
            router.send_multipart([peer, kind, data], copy=False)
        elif kind.bytes == b"l":
            router.send_multipart([peer, kind, _ANSWER], copy=False)


class Zmq:
    """See `serve_zmq`."""

    def __init__(self, address: str) -> None:
        self._dealer = zmq.Context.instance().socket(zmq.DEALER)
        self._dealer.set(zmq.LINGER, 0)
        self._dealer.set(zmq.SNDHWM, 16)
        self._dealer.connect(address)

    def echo(self, data: memoryview) -> None:
        """See `Caller`."""
        self._dealer.send_multipart([b"e", data], copy=False)
        self._dealer.recv_multipart(copy=False)

    def stream(self, data: memoryview, count: int) -> None:
        """See `Caller`."""
        for index in range(count):
            self._dealer.send_multipart([b"l" if index == count - 1 else b"s", data], copy=False)
        self._dealer.recv_multipart()

    def close(self) -> None:
        """See `Caller`."""
        self._dealer.close()


# gRPC.

_GRPC_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def serve_grpc(_: str) -> None:
    """Send back, or swallow, the messages of a stream, as the bytes they are: no protobuf that would copy them."""
    import grpc

    def echo(messages: Iterator[bytes], _: Any) -> Iterator[bytes]:
        yield from messages

    def sink(messages: Iterator[bytes], _: Any) -> bytes:
        for _message in messages:
            pass
        return _ANSWER

    server = grpc.server(ThreadPoolExecutor(4), options=_GRPC_OPTIONS)
    handlers = {
        "echo": grpc.stream_stream_rpc_method_handler(echo),
        "sink": grpc.stream_unary_rpc_method_handler(sink),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("hop", handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


class Grpc:
    """See `serve_grpc`; all echoes go over one stream."""

    def __init__(self, port: str) -> None:
        import grpc

        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=_GRPC_OPTIONS)
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._back = self._channel.stream_stream("/hop/echo")(iter(self._out.get, None))
        self._sink = self._channel.stream_unary("/hop/sink")
        self._data: tuple[memoryview, bytes] = (memoryview(b""), b"")

    def echo(self, data: memoryview) -> None:
        """See `Caller`."""
        self._out.put(self._bytes(data))
        next(self._back)

    def stream(self, data: memoryview, count: int) -> None:
        """See `Caller`."""
        self._sink(itertools.repeat(self._bytes(data), count), timeout=WAIT_S)

    def close(self) -> None:
        """See `Caller`."""
        self._out.put(None)
        self._channel.close()

    def _bytes(self, data: memoryview) -> bytes:
        """It takes bytes alone: made once, so that the copy is not counted against it."""
        if self._data[0] is not data:
            self._data = data, bytes(data)
        return self._data[1]


# MQTT.


def serve_mqtt(_: str) -> None:
    """Run a broker, and a client that sends back, or counts, what is published."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the broker ends too
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        config = Path(folder) / "mosquitto.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nset_tcp_nodelay true\n"
        )
        with _ended(subprocess.Popen([_mosquitto(), "-c", str(config)], stderr=subprocess.DEVNULL)):
            client = _mqtt_client(port, ["e", "s", "l"])

            def on_message(_client: Any, _data: Any, message: Any) -> None:
                if message.topic != "s":
                    client.publish("r", message.payload if message.topic == "e" else _ANSWER)

            client.on_message = on_message
            print(port, flush=True)
            client.loop_forever()


class Mqtt:
    """See `serve_mqtt`; quality of service 0, which is its fastest."""

    def __init__(self, port: str) -> None:
        self._heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._client = _mqtt_client(int(port), ["r"])
        self._client.on_message = lambda _client, _data, message: self._heard.put(message.payload)
        self._client.loop_start()

    def echo(self, data: memoryview) -> None:
        """See `Caller`."""
        self._client.publish("e", bytearray(data))
        self._heard.get(timeout=WAIT_S)

    def stream(self, data: memoryview, count: int) -> None:
        """See `Caller`."""
        payload = bytearray(data)
        for index in range(count):
            self._client.publish("l" if index == count - 1 else "s", payload).wait_for_publish(WAIT_S)
        self._heard.get(timeout=WAIT_S)

    def close(self) -> None:
        """See `Caller`."""
        self._client.loop_stop()


def _mqtt_client(port: int, topics: list[str]) -> Any:
    from paho.mqtt import client as mqtt

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda *_: client.subscribe([(topic, 0) for topic in topics])
    subscribed: queue.SimpleQueue[int] = queue.SimpleQueue()
    client.on_subscribe = lambda *_: subscribed.put(1)
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            client.connect("127.0.0.1", port)
            break
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
    while subscribed.empty():
        client.loop(0.05)
    return client


def _mosquitto() -> str:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin") or ""


@contextlib.contextmanager
def _ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _without_grpc() -> str:
    return "" if importlib.util.find_spec("grpc") else "pip install grpcio"


def _without_mqtt() -> str:
    if not _mosquitto():
        return "apt install mosquitto"
    return "" if importlib.util.find_spec("paho") else "pip install paho-mqtt"


TCP, IPC = "tcp://127.0.0.1:0", "ipc://"
"""`ipc://`: the driver adds a path."""

RIVALS = (
    Rival("raw TCP sockets", serve_raw, Raw),
    Rival("HyPS tcp", lambda _: serve_hyps(TCP), Hyps),
    Rival("HyPS ipc, shared memory", serve_hyps, Hyps),
    Rival("HyPS ipc, socket alone", lambda path: serve_hyps(path, 0), lambda address: Hyps(address, 0)),
    Rival("pyzmq tcp, no copies", lambda _: serve_zmq(TCP), Zmq),
    Rival("gRPC stream", serve_grpc, Grpc, _without_grpc),
    Rival("MQTT, mosquitto", serve_mqtt, Mqtt, _without_mqtt),
)
"""The first is what all are compared with."""
