"""Milvus: one collection of templates and their vectors, and its errors in our words.

All that is particular to Milvus lives here; how a collection follows the store is
:mod:`gallery.follower`. The client is the same for a cluster, a single server and Milvus
Lite, which runs inside this process. Imports the core, numpy and this package's records;
pymilvus as the first collection is opened.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facerec.errors import ConfigError, GalleryError
from facerec.types import FloatArray
from gallery.records import IdArray, VectorBatch

MAX_WIDTH = 16_384
"""Most neighbours of one search, Milvus' own limit."""
SETTLED_S = 10.0
"""After which a write counts in every search: those that are not strong lag by Milvus' own
``gracefulTime``, 5 s, and no more. A strong one waits for its clock to tick, 0.2 s."""

_BATCH_BYTES = 16 * 1024 * 1024
"""Of vectors in one message; Milvus takes 64 MB."""
_FLUSH_AFTER = 1000
"""Rows written until Milvus is asked to seal them: Milvus Lite searches loose rows slowly."""
_DONE = (1 << 63) - 1
_MARK_ROWS = (-1, -2, -3, -4)  # the fields of a Mark, in the place of an owner
_ENTRIES, _MARKS = "_default", "marks"  # partitions
_INDEXES: dict[str, tuple[str, dict[str, Any]]] = {
    "flat": ("FLAT", {}),
    "hnsw": ("HNSW", {"M": 32, "efConstruction": 200}),
    "ivf": ("IVF_FLAT", {"nlist": 1024}),
}
_SEARCH: dict[str, dict[str, Any]] = {"hnsw": {"ef": 256}, "ivf": {"nprobe": 64}}
# gRPC waits up to two minutes before it tries a server again that was away.
_CHANNEL = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.use_local_subchannel_pool": 1,
}
_NOT_FOUND, _NOT_LOADED = 100, 101  # codes of Milvus

_lite_lock = threading.Lock()
_lite_users: Counter[str] = Counter()


class CollectionGone(GalleryError):
    """The collection is not there, or not ready to be searched."""


@dataclass(frozen=True)
class Mark:
    """Of which revision of the store a collection is, and up to which id it was filled.

    people: how many have a template, by a count of the revision ``counted``.
    """

    revision: int
    position: int = _DONE
    people: int = 0
    counted: int = 0

    @property
    def done(self) -> bool:
        return self.position == _DONE


class MilvusCollection:
    """(id, owner, vector) of templates, searched by cosine. Threads may share it.

    address: ``http://HOST:PORT``, or the path of a Milvus Lite file. kind: of the index that it
    is to be made with, any that a gallery knows: see :func:`type_of`. Raises GalleryError where
    Milvus does not answer within ``timeout_s``, and CollectionGone where the collection is not
    there.
    """

    def __init__(self, address: str, name: str, dim: int, kind: str, timeout_s: float) -> None:
        self.name = name
        self.address = shown(address)
        self.dim = dim
        self.kind = self.wanted = type_of(kind)
        """``kind``: of the index that is there."""
        # As of gallery.index: the rounding of float32 sums in any order, and doubled.
        self.tolerance = 2.0 * dim * 2.0**-24
        self._lite = _lite_path(address)
        self._timeout_s = timeout_s
        self._loose = 0
        self._client: Any = self._connect(address)

    @property
    def exact(self) -> bool:
        return self.kind == "flat"

    def close(self) -> None:
        """Let go of Milvus; of Milvus Lite too, once nobody in this process needs it."""
        self._client.close()
        if self._lite:
            _release_lite(self._lite)

    def ping(self) -> None:
        """Raises GalleryError where Milvus does not answer."""
        self._call("has_collection", self.name)

    # How far it has come

    def mark(self) -> Mark | None:
        """None where there is no such collection, or one that does not say what it is."""
        try:
            values = self._marks()
        except CollectionGone:
            if not self.attach():
                return None
            values = self._marks()  # it was there, and had only to be loaded
        if values.keys() != set(_MARK_ROWS):
            return None
        return Mark(*(values[row] for row in _MARK_ROWS))

    def _marks(self) -> dict[int, int]:
        rows = self._call(
            "query", self.name, ids=list(_MARK_ROWS), output_fields=["owner"],
            partition_names=[_MARKS], consistency_level="Strong",
        )  # fmt: skip
        return {int(row["id"]): int(row["owner"]) for row in rows}

    def set_mark(self, mark: Mark) -> None:
        nowhere = np.zeros(self.dim, np.float32)
        values = (mark.revision, mark.position, mark.people, mark.counted)
        rows = [
            {"id": row, "owner": value, "vector": nowhere}
            for row, value in zip(_MARK_ROWS, values, strict=True)
        ]
        self._call("upsert", self.name, rows, partition_name=_MARKS)

    # Making and filling

    def attach(self) -> bool:
        """Make ready for searches what is there; False where there is nothing."""
        if not self._call("has_collection", self.name):
            return False
        self._call("load_collection", self.name)
        self.look_at_index()
        return True

    def look_at_index(self) -> None:
        """Of which type it is: another process may have made it anew."""
        about = self._call("describe_index", self.name, "vector") or {}
        types = {index_type: kind for kind, (index_type, _) in _INDEXES.items()}
        self.kind = types.get(about.get("index_type", ""), "ivf")  # a stranger's is not exact

    def create(self) -> None:
        """Anew and empty, whatever was there."""
        from pymilvus import DataType

        self.drop()
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("owner", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.dim)
        self.kind = self.wanted
        index_type, parameters = _INDEXES[self.kind]
        indexes = self._client.prepare_index_params()
        indexes.add_index("vector", index_type=index_type, metric_type="IP", params=parameters)
        self._call("create_collection", self.name, schema=schema, consistency_level="Strong")
        # Empty, so that there is nothing to wait for.
        self._call("create_index", self.name, indexes, sync=False)
        self._call("create_partition", self.name, _MARKS)
        self._call("load_collection", self.name)

    def drop(self) -> None:
        if self._call("has_collection", self.name):
            self._call("drop_collection", self.name)

    def drop_others(self, prefix: str) -> None:
        """Remove the other collections whose name begins so."""
        for name in self._call("list_collections"):
            if name.startswith(prefix) and name != self.name:
                self._call("drop_collection", name)

    def put(self, batch: VectorBatch) -> None:
        """Add templates, or replace those of the same id."""
        step = max(1, _BATCH_BYTES // (4 * self.dim))
        for start in range(0, len(batch.ids), step):
            part = slice(start, start + step)
            ids, owners = batch.ids[part].tolist(), batch.owners[part].tolist()
            rows = [
                {"id": i, "owner": owner, "vector": vector}
                for i, owner, vector in zip(ids, owners, batch.vectors[part], strict=True)
            ]
            self._call("upsert", self.name, rows)
            self._loose += len(rows)

    def remove(self, ids: IdArray) -> None:
        """Remove those of the (n,) templates that are there."""
        for start in range(0, len(ids), MAX_WIDTH):
            self._call("delete", self.name, ids=ids[start : start + MAX_WIDTH].tolist(),
                       partition_name=_ENTRIES)  # fmt: skip

    def settle(self, *, now: bool = False) -> None:
        """Have rows sealed once many are loose: they are searched by index then."""
        if self._loose and (now or self._loose >= _FLUSH_AFTER):
            self._call("flush", self.name)
            self._loose = 0

    # Looking

    def search(
        self, probes: FloatArray, width: int, *, strong: bool, without: Sequence[int] = ()
    ) -> list[tuple[IdArray, FloatArray]]:
        """For each of (N, d) probes the ``width`` nearest templates, nearest first.

        (m,) ids and (m,) similarities, m < width where there are no more. strong: counting all
        that was written before the call; else what was SETTLED_S ago, which is faster. without:
        owners whose templates do not count.
        """
        parameters = dict(_SEARCH.get(self.kind, {}))
        if "ef" in parameters:
            parameters["ef"] = max(parameters["ef"], width)
        level = "Strong" if strong else "Bounded"
        rows = self._call(
            "search", self.name, data=list(probes), limit=width, anns_field="vector",
            output_fields=["owner"], partition_names=[_ENTRIES], consistency_level=level,
            search_params={"metric_type": "IP", "params": parameters},
            filter=f"owner not in {[int(owner) for owner in without]}" if len(without) else "",
        )  # fmt: skip
        return [(np.array(row.ids, np.int64), np.array(row.distances, np.float32)) for row in rows]

    def rows(self, ids: IdArray) -> VectorBatch:
        """Those of the (n,) templates that are there, ids ascending."""
        found = self._call(
            "query", self.name, ids=ids.tolist(), output_fields=["owner", "vector"],
            partition_names=[_ENTRIES], consistency_level="Strong",
        )  # fmt: skip
        found = sorted(found, key=lambda row: int(row["id"]))
        return VectorBatch(
            np.array([row["id"] for row in found], np.int64),
            np.array([row["owner"] for row in found], np.int64),
            np.array([row["vector"] for row in found], np.float32).reshape(-1, self.dim),
        )

    def __len__(self) -> int:
        """Templates; this reads them all."""
        [row] = self._call(
            "query", self.name, filter="id > 0", output_fields=["count(*)"],
            consistency_level="Strong",
        )  # fmt: skip
        return int(row["count(*)"])

    # The client

    def _connect(self, address: str) -> Any:
        try:
            from pymilvus import MilvusClient
        except ImportError as exc:
            raise ConfigError(
                "vectors in Milvus need pymilvus: pip install 'facerec[scale]'"
            ) from exc
        # It sets its own level, and logs a traceback of all that it also raises.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        if self._lite:
            # Which it runs in this process: the client asks its server for what that has not.
            logging.getLogger("grpc._server").setLevel(logging.CRITICAL)
            _hold_lite(self._lite)
        try:
            with self._translated():
                return MilvusClient(uri=self._lite or address, timeout=self._timeout_s,
                                    dedicated=True, grpc_options=_CHANNEL)  # fmt: skip
        except BaseException:
            if self._lite:
                _release_lite(self._lite)
            raise

    def _call(self, method: str, *args: Any, **keywords: Any) -> Any:
        with self._translated():
            return getattr(self._client, method)(*args, timeout=self._timeout_s, **keywords)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except grpc.RpcError as exc:
            details = getattr(exc, "details", None)
            raise self._unreachable(str(details() if details else exc)) from exc
        except MilvusException as exc:
            said = " ".join(str(exc.message).split())[:300]
            if exc.code in (_NOT_FOUND, _NOT_LOADED) or "not found" in said:
                raise CollectionGone(f"{self.address}: Milvus says: {said}") from exc
            if exc.code in (2, 3) or "unavailable" in said or "connect" in said.lower():
                raise self._unreachable(said) from exc
            raise GalleryError(
                f"{self.address}: Milvus refused: {said}. The database is unharmed."
            ) from exc

    def _unreachable(self, said: str) -> GalleryError:
        return GalleryError(
            f"{self.address}: Milvus does not answer ({said}). What was committed is safe in the "
            "database; searches and changes go on once Milvus does."
        )


def type_of(kind: str) -> str:
    """hnsw or ivf, or for every type of a gallery that is exact, flat: Milvus' only such one."""
    return kind if kind in _INDEXES else "flat"


def shown(address: str) -> str:
    """The address without user and password."""
    scheme, sep, rest = address.partition("://")
    return f"{scheme}{sep}{rest.rpartition('@')[2]}" if sep else address


def _lite_path(address: str) -> str | None:
    """The absolute path of a Milvus Lite file; None for an address of a server."""
    if "://" in address:
        return None
    if not address.endswith(".db"):
        raise ConfigError(f"{address}: the name of a Milvus Lite file ends in .db")
    return str(Path(address).absolute())


def _hold_lite(path: str) -> None:
    """Count one more user of the file. Raises GalleryError where another process has it."""
    import fcntl

    with _lite_lock:
        lock = Path(path) / "LOCK"
        if not _lite_users[path] and lock.exists():
            with lock.open("rb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as exc:
                    raise GalleryError(
                        f"{path}: Milvus Lite is for one process at a time, and another has it "
                        "open. Start 'milvus-lite server' on it and give everybody "
                        "milvus=http://HOST:PORT, or use a Milvus server."
                    ) from exc
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise GalleryError(f"{path}: cannot be made ({exc.strerror or exc})") from exc
        _lite_users[path] += 1


def _release_lite(path: str) -> None:
    from milvus_lite.server_manager import server_manager_instance

    with _lite_lock:
        _lite_users[path] -= 1
        if not _lite_users[path]:
            server_manager_instance.release_server(path)
