"""A retrieval server for one command; the index of its corpus is built once, in cache/indexes."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from research.errors import DataError
from research.places import CACHE
from research.processes import stop

INDEXES = CACHE / "indexes"
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Service:
    """What to serve: `kind`, `encoder` and `options` (key=value) as in `python -m retriever_server build`."""

    corpus: Path
    encoder: str
    kind: str
    options: tuple[str, ...] = ()

    @property
    def index(self) -> Path:
        """The folder of the index; a corpus that has changed gets another one."""
        stat = self.corpus.stat()
        parts = (
            self.corpus.resolve(),
            stat.st_size,
            stat.st_mtime_ns,
            Path(self.encoder).resolve() if Path(self.encoder).is_dir() else self.encoder,
            self.kind,
            *self.options,
        )
        key = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]
        return INDEXES / f"{self.corpus.name.split('.')[0]}-{key}"


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The address of the server, which ends with the block or this process. Raises DataError."""
    command = [sys.executable, "-m", "retriever_server"]
    build = [*command, "build", str(service.corpus), str(service.index), "--index", service.kind]
    options = [word for option in service.options for word in ("--index-option", option)]
    if subprocess.run([*build, "--encoder", service.encoder, *options]).returncode:
        raise DataError(f"the index of {service.corpus} could not be built: see above")
    with serving_index(service.index) as url:
        yield url


@contextmanager
def serving_index(index: Path) -> Iterator[str]:
    """The address of a server of an index, which ends with the block or this process.

    Raises DataError.
    """
    options = ["--port", "0", "--die-with-parent"]
    serve = [sys.executable, "-m", "retriever_server", "serve", str(index), *options]
    process = subprocess.Popen(serve, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        if not line.startswith("ready: "):
            raise DataError(f"the index {index} could not be served: see above")
        yield line.split()[1]
    finally:
        stop(process, PATIENCE_S)
