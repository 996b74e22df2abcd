"""An HTTP/3 client by aioquic, for the interop tests: one command a run, and what it saw as JSON on standard output.

usage: h3.py COMMAND PORT CA [ARGUMENT ...]

  basics                    GET, HEAD, a 404, an upload that comes back with trailers
  upload LENGTH             POST of so many bytes, which the origin compares
  download LENGTH MOVE      GET of so many bytes, compared here; MOVE is `stay`, `rebind` (another port, as behind a NAT)
                            or `migrate` (another port and another connection id) after a quarter of them
  resume                    three connections: the second and third have their request in 0-RTT, the third an address token
  drain PATH                says `asked` once a request is under way, and waits for GOAWAY and the end
  websocket                 an echo by extended CONNECT (RFC 9220)
"""

import asyncio
import json
import ssl
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import Buffer, BufferReadError
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived, StreamReset

# what bodies are made of: byte N is N modulo 251, so that no power of two hides a shift
PERIOD = bytes(range(251))
BLOCK = PERIOD * 1024
CONTROL, GOAWAY = 0x00, 0x07
ENABLE_CONNECT_PROTOCOL = 0x08


def pattern(offset, length):
    """`length` bytes of the pattern from `offset` on; at most a few blocks."""
    begin = offset % len(PERIOD)
    times = (begin + length) // len(BLOCK) + 1
    return (BLOCK * times)[begin : begin + length]


class Answer:
    """What came on one stream so far."""

    def __init__(self, keep):
        self.heads = []
        self.body = bytearray()
        self.length = 0
        self.good = True
        self.keep = keep
        self.reset = None
        self.done = asyncio.Event()
        self.news = asyncio.Event()

    def take(self, data):
        if self.keep:
            self.body += data
        elif data != pattern(self.length, len(data)):
            self.good = False
        self.length += len(data)

    def head(self, index=0):
        return {name.decode(): value.decode() for name, value in self.heads[index]}

    def status(self):
        return int(self.head()[":status"]) if self.heads else 0


class Http(H3Connection):
    """aioquic holds an answer to HEAD to its content-length, which has no body (RFC 9110 section 9.3.2)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.bodiless = set()

    def _check_content_length(self, stream):
        if stream.stream_id not in self.bodiless:
            super()._check_content_length(stream)


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = Http(self._quic)
        self.answers = {}
        self.closed = None
        self.uni = {}
        self.goaways = []

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            self.closed = event
            for answer in self.answers.values():
                answer.done.set()
                answer.news.set()
        if isinstance(event, StreamReset) and event.stream_id in self.answers:
            answer = self.answers[event.stream_id]
            answer.reset = event.error_code
            answer.done.set()
            answer.news.set()
        if isinstance(event, StreamDataReceived) and event.stream_id % 4 == 3:
            self.uni.setdefault(event.stream_id, bytearray()).extend(event.data)
            self.goaways = goaways(self.uni)
        for happened in self.http.handle_event(event):
            answer = self.answers.get(happened.stream_id)
            if answer is None:
                continue
            if isinstance(happened, HeadersReceived):
                answer.heads.append(happened.headers)
            elif isinstance(happened, DataReceived):
                answer.take(happened.data)
            answer.news.set()
            if happened.stream_ended:
                answer.done.set()

    def open(self, method, path, fields=(), end=True, keep=True):
        """Sends a request's head."""
        stream = self._quic.get_next_available_stream_id()
        self.answers[stream] = Answer(keep)
        if method == "HEAD":
            self.http.bodiless.add(stream)
        head = [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", b"localhost"),
            (b":path", path.encode()),
        ]
        self.http.send_headers(stream, head + list(fields), end_stream=end)
        self.transmit()
        return stream, self.answers[stream]

    async def fetch(self, *args, **kwargs):
        answer = self.open(*args, **kwargs)[1]
        await answer.done.wait()
        return answer

    async def send(self, stream, length):
        """The pattern as a body, no more of it in memory than a few MiB."""
        sender = self._quic._streams[stream].sender
        sent = 0
        while sent < length and self.closed is None:
            while sender._buffer_stop - sender._buffer_start > 4 << 20 and self.closed is None:
                await asyncio.sleep(0.001)
            size = min(length - sent, 256 << 10)
            self.http.send_data(stream, pattern(sent, size), end_stream=False)
            self.transmit()
            sent += size
            await asyncio.sleep(0)

    async def move(self, migrate):
        """To another local port; as behind a NAT, or with another connection id."""
        old = self._transport
        before = old.get_extra_info("sockname")[1]
        if migrate:
            self.change_connection_id()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("::", 0))
        self.transmit()
        old.close()
        return [before, transport.get_extra_info("sockname")[1]]


def goaways(uni):
    """The ids of the GOAWAY frames on the server's control stream (RFC 9114 section 7.2.6)."""
    found = []
    for data in uni.values():
        reader = Buffer(data=bytes(data))
        try:
            if reader.pull_uint_var() != CONTROL:
                continue
            while not reader.eof():
                kind = reader.pull_uint_var()
                payload = reader.pull_bytes(reader.pull_uint_var())
                if kind == GOAWAY:
                    found.append(Buffer(data=payload).pull_uint_var())
        except BufferReadError:
            pass
    return found


def configuration(ca):
    config = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name="localhost")
    config.verify_mode = ssl.CERT_REQUIRED
    config.load_verify_locations(cafile=ca)
    config.max_stream_data = 8 << 20
    config.max_data = 16 << 20
    config.idle_timeout = 20
    return config


async def basics(connect_to):
    async with connect_to() as client:
        page = await client.fetch("GET", "/text")
        head = await client.fetch("HEAD", "/bytes/1000")
        none = await client.fetch("GET", "/none")
        stream, echo = client.open("POST", "/echo", [(b"te", b"trailers")], end=False)
        client.http.send_data(stream, b"some bytes", end_stream=False)
        client.http.send_headers(stream, [(b"x-sum", b"10")], end_stream=True)
        client.transmit()
        await echo.done.wait()
        return {
            "page": [page.status(), page.body.decode(), page.head().get("alt-svc", "")],
            "head": [head.status(), head.length, head.head()["content-length"]],
            "none": none.status(),
            "echo": [echo.status(), echo.body.decode(), echo.head(-1) if len(echo.heads) > 1 else None],
        }


async def upload(connect_to, length):
    async with connect_to() as client:
        stream, answer = client.open(
            "POST", "/sink", [(b"content-length", length.encode())], end=False
        )
        await client.send(stream, int(length))
        client.http.send_data(stream, b"", end_stream=True)
        client.transmit()
        await answer.done.wait()
        return {"status": answer.status(), "said": answer.body.decode()}


async def download(connect_to, length, move):
    length = int(length)
    async with connect_to() as client:
        answer = client.open("GET", f"/bytes/{length}", keep=False)[1]
        ports = None
        while not answer.done.is_set():
            answer.news.clear()
            await answer.news.wait()
            if ports is None and move != "stay" and answer.length >= length // 4:
                ports = await client.move(move == "migrate")
        return {
            "status": answer.status(),
            "length": answer.length,
            "good": answer.good,
            "ports": ports,
            "closed": str(client.closed) if client.closed else None,
        }


async def resume(connect_to):
    seen = []
    tickets, tokens = [], []
    # the second knows no token: its address is only claimed, so its request waits for the handshake
    for turn in range(3):
        ticket = tickets.pop() if turn else None
        token = tokens[-1] if turn == 2 else b""
        handlers = {"session_ticket_handler": tickets.append, "token_handler": tokens.append}
        async with connect_to(ticket, token, wait_connected=not turn, **handlers) as client:
            answer = await client.fetch("GET", "/early")
            tls = client._quic.tls
            seen.append([answer.status(), answer.body.decode(), tls.session_resumed, tls.early_data_accepted])
            for _ in range(100):
                if tickets and tokens:
                    break
                await asyncio.sleep(0.02)
    return seen


async def drain(connect_to, path):
    async with connect_to() as client:
        stream, answer = client.open("GET", path)
        await answer.news.wait()
        print("asked", flush=True)
        await answer.done.wait()
        goaways = list(client.goaways)
        await client.wait_closed()
        return {
            "status": answer.status(),
            "said": answer.body.decode(),
            "stream": stream,
            "goaways": goaways,
            "code": client.closed.error_code,
        }


def frame(opcode, payload):
    """A WebSocket frame as clients send it (RFC 6455 section 5.2), of at most 65,535 bytes."""
    mask = b"\x12\x34\x56\x78"
    length = len(payload)
    short = bytes([0x80 | opcode, 0x80 | (length if length < 126 else 126)])
    long = length.to_bytes(2, "big") if length >= 126 else b""
    return short + long + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def unframe(data):
    """Opcodes and payloads of the whole frames in `data`."""
    frames, data = [], bytes(data)
    while len(data) >= 2:
        length, at = data[1] & 0x7F, 2
        if length == 126:
            length, at = int.from_bytes(data[2:4], "big"), 4
        if len(data) < at + length:
            break
        frames.append((data[0] & 0x0F, data[at : at + length]))
        data = data[at + length :]
    return frames


async def websocket(connect_to):
    async with connect_to() as client:
        await client.fetch("GET", "/text")
        settings = client.http.received_settings or {}
        stream, answer = client.open(
            "CONNECT",
            "/ws",
            [(b":protocol", b"websocket"), (b"sec-websocket-version", b"13"), (b"origin", b"https://localhost")],
            end=False,
        )
        messages = [b"a", b"some words", bytes(range(256)) * 100]
        for at, message in enumerate(messages):
            client.http.send_data(stream, frame(2 if at == 2 else 1, message), end_stream=False)
        client.transmit()
        while len(unframe(answer.body)) < len(messages) and not answer.done.is_set():
            answer.news.clear()
            await answer.news.wait()
        echoed = [payload for _, payload in unframe(answer.body)] == messages
        client.http.send_data(stream, frame(8, (1000).to_bytes(2, "big")), end_stream=False)
        client.transmit()
        while len(unframe(answer.body)) <= len(messages) and not answer.done.is_set():
            answer.news.clear()
            await answer.news.wait()
        client.http.send_data(stream, b"", end_stream=True)
        client.transmit()
        await asyncio.wait_for(answer.done.wait(), 5)
        return {
            "setting": settings.get(ENABLE_CONNECT_PROTOCOL, 0),
            "status": answer.status(),
            "echoed": echoed,
            "closed": [opcode for opcode, _ in unframe(answer.body)][-1:] == [8],
            "reset": answer.reset,
        }


COMMANDS = {
    "basics": basics,
    "upload": upload,
    "download": download,
    "resume": resume,
    "drain": drain,
    "websocket": websocket,
}


def main():
    command, port, ca, *arguments = sys.argv[1:]

    def connect_to(ticket=None, token=b"", **options):
        config = configuration(ca)
        config.session_ticket, config.token = ticket, token
        return connect("127.0.0.1", int(port), configuration=config, create_protocol=Client, **options)

    print(json.dumps(asyncio.run(COMMANDS[command](connect_to, *arguments))))


if __name__ == "__main__":
    main()
