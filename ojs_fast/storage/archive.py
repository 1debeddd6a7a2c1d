"""A backup as a file: a tar archive of compressed chunks, closed by a manifest with the checksum of each.

An entry of a chunk is one line of JSON, `[sequence, epoch ms, TTL, subject, bytes, whether it is a deletion]`, and the
bytes of one message. The manifest comes last, so a file that was cut off has none; its own checksum comes behind it.
Knows messages as bytes; must not know what they mean.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import orjson

FORMAT = 1
KIND = "ojs-fast backup"
MANIFEST = "manifest.json"
CHECKSUM = "manifest.sha256"
CHUNK_BYTES = 4 * 1024 * 1024
COMPRESSION = 1  # records are JSON: the quickest level already takes them to a fifth
MANIFEST_BYTES_MAX = 256 * 1024 * 1024


class BadArchive(Exception):
    """A file is no backup, is damaged, was cut off, or is of a newer version. The message says which."""


class Entry(NamedTuple):
    """One stored message. `ttl` as NATS has it ("5s", or ""), `time_ms` by the clock of NATS."""

    sequence: int
    time_ms: int
    ttl: str
    subject: str
    data: bytes
    is_deletion: bool = False


class ArchiveWriter:
    """Writes a backup beside its final name; only `finish` puts it there."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        self._draft = Path(name)
        self._file = os.fdopen(handle, "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - see __exit__
        self._chunks: list[list[Any]] = []
        self._lines: list[bytes] = []
        self._size = 0
        self._name = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._draft.unlink(missing_ok=True)

    def add(self, stream: str, entry: Entry, *, is_late: bool) -> None:
        """Add a message; `is_late`: it was written while the backup was made, over one that may be in it already."""
        name = f"{stream}/{'late' if is_late else 'base'}"
        if name != self._name or self._size > CHUNK_BYTES:
            self._flush()
            self._name = name
        head = [entry.sequence, entry.time_ms, entry.ttl, entry.subject, len(entry.data), int(entry.is_deletion)]
        self._lines += [orjson.dumps(head), b"\n", entry.data, b"\n"]
        self._size += len(entry.data) + 100

    def _flush(self) -> None:
        if not self._lines:
            return
        raw = b"".join(self._lines)
        packed = zlib.compress(raw, COMPRESSION)
        name = f"{self._name}-{len(self._chunks):06}"
        self._put(name, packed)
        self._chunks.append([name, len(self._lines) // 4, len(raw), hashlib.sha256(packed).hexdigest()])
        self._lines, self._size = [], 0

    def _put(self, name: str, data: bytes) -> None:
        about = tarfile.TarInfo(name)
        about.size = len(data)
        self._tar.addfile(about, io.BytesIO(data))

    def finish(self, about: dict[str, Any]) -> int:
        """Write the manifest, have all of it on disk, give it its name; the size in bytes. Raises OSError."""
        self._flush()
        manifest = orjson.dumps({"kind": KIND, "format": FORMAT, **about, "chunks": self._chunks})
        self._put(MANIFEST, manifest)
        self._put(CHECKSUM, hashlib.sha256(manifest).hexdigest().encode())
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._draft.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return size


class Archive:
    """A backup that was looked through and found whole."""

    def __init__(self, path: Path) -> None:
        """Raises OSError. Use `open_archive`."""
        self.path = path
        self.manifest: dict[str, Any] = {}
        self.checksum = ""
        # Stream → subject → the last sequence that the archive has of those written while it was made.
        self._moved: dict[str, dict[str, int]] = {}

    @property
    def messages(self) -> int:
        """How many messages it holds, those included that later ones replace."""
        return sum(int(count) for _, count, _, _ in self.manifest["chunks"])

    def verify(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Read all of it once; `progress` gets numbers of bytes. Raises BadArchive, OSError."""
        found: list[list[Any]] = []
        tail: dict[str, bytes] = {}
        try:
            with self._opened() as tar:
                for member in tar:
                    data = _content(tar, member)
                    progress(member.size)
                    if member.name in (MANIFEST, CHECKSUM):
                        tail[member.name] = data
                        continue
                    found.append([member.name, hashlib.sha256(data).hexdigest()])
        except (tarfile.TarError, EOFError) as error:
            raise BadArchive(f"{self.path} is no backup of ojs-fast, or is damaged ({error})") from error
        self._accept(tail)
        if found != [[name, checksum] for name, _, _, checksum in self.manifest["chunks"]]:
            raise BadArchive(f"{self.path} is damaged: its contents do not match its manifest")
        self._find_moved()

    def _accept(self, tail: dict[str, bytes]) -> None:
        if len(tail) < 2:
            raise BadArchive(f"{self.path} is no backup of ojs-fast, or was cut off: its end is missing")
        self.checksum = hashlib.sha256(tail[MANIFEST]).hexdigest()
        if self.checksum.encode() != tail[CHECKSUM]:
            raise BadArchive(f"{self.path} is damaged: its manifest does not match its checksum")
        manifest = orjson.loads(tail[MANIFEST])
        if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
            raise BadArchive(f"{self.path} is no backup of ojs-fast")
        if manifest["format"] != FORMAT:
            raise BadArchive(
                f"{self.path} has format {manifest['format']}, made by ojs-fast {manifest.get('version')}; this "
                f"version reads format {FORMAT}: use that version, or a newer one"
            )
        self.manifest = manifest

    def _find_moved(self) -> None:
        self._moved = {}
        for stream in {name.partition("/")[0] for name, _, _, _ in self.manifest["chunks"]}:
            for _, entry in self._read(stream, "late"):
                self._moved.setdefault(stream, {})[entry.subject] = entry.sequence

    def entries(self, stream: str) -> Iterator[Entry]:
        """The last message of each subject of a stream, oldest first, without deletions. Raises OSError."""
        moved = self._moved.get(stream, {})
        for part in ("base", "late"):
            for is_late, entry in self._read(stream, part):
                last = moved.get(entry.subject)
                if (last is None or (is_late and last == entry.sequence)) and not entry.is_deletion:
                    yield entry

    def _read(self, stream: str, part: str) -> Iterator[tuple[bool, Entry]]:
        sizes = {name: size for name, _, size, _ in self.manifest["chunks"] if name.startswith(f"{stream}/{part}-")}
        if not sizes:
            return
        with self._opened() as tar:
            for member in tar:
                if member.name in sizes:
                    raw = zlib.decompressobj().decompress(_content(tar, member), sizes[member.name] + 1)
                    yield from ((part == "late", entry) for entry in _parsed(raw))

    def _opened(self) -> tarfile.TarFile:
        return tarfile.open(self.path, mode="r:")


def open_archive(path: Path, progress: Callable[[int], None] = lambda _: None) -> Archive:
    """Open a backup and look all through it. Raises BadArchive, OSError."""
    archive = Archive(path)
    archive.verify(progress)
    return archive


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: IO[bytes] | None = tar.extractfile(member) if member.size <= MANIFEST_BYTES_MAX else None
    data = file.read() if file is not None else b""
    if file is None or len(data) != member.size:
        raise tarfile.ReadError(f"{member.name[:80]!r} is no chunk, or is cut off")
    return data


def _parsed(raw: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(raw):
        end = raw.index(b"\n", at)
        sequence, time_ms, ttl, subject, size, is_deletion = orjson.loads(raw[at:end])
        at = end + 1 + size + 1
        yield Entry(sequence, time_ms, ttl, subject, raw[end + 1 : at - 1], bool(is_deletion))
