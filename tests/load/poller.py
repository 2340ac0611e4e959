"""A client that costs little: one keep-alive connection, and as much of HTTP/1.1 as uvicorn speaks.

The load script shares the machine with the server: what its client burns, the server cannot have.
"""

import asyncio
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """The status of an answer, and the tag of its content, if it has one."""

    status: int
    tag: str | None


class Poller:
    """One connection that asks for one path."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        head: str,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._head = head

    @classmethod
    async def connect(cls, url: str, path: str, api_key: str | None) -> Self:
        """Open a connection to the server at `url`."""
        where = urlsplit(url)
        assert where.scheme == "http", f"{url}: only plain HTTP is spoken here"
        reader, writer = await asyncio.open_connection(where.hostname, where.port or 80)
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        return cls(reader, writer, f"GET {path} HTTP/1.1\r\nHost: {where.netloc}\r\n{key}")

    async def ask(self, seen: str | None = None) -> Answer:
        """The answer to one request; with `seen`, a tag, to one that wants news only."""
        condition = f"If-None-Match: {seen}\r\n" if seen else ""
        self._writer.write(f"{self._head}{condition}\r\n".encode())
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        status = int(first.split(" ")[1])
        fields = {
            name.lower(): value
            for name, found, value in (x.partition(": ") for x in lines)
            if found
        }
        if status != 304:
            await self._reader.readexactly(int(fields["content-length"]))
        return Answer(status, fields.get("etag"))

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._writer.wait_closed()
