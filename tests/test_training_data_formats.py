"""RecordIO, tar shards and verification .bin files: read, written, damaged and hostile."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec.errors import ConfigError, ImageError
from facerec.image import to_jpeg

pytest.importorskip("torch")

from training.data import (
    ImageFolder,
    RecordFile,
    RecordSource,
    RecordWriter,
    ShardSource,
    ShuffleSampler,
    expand_shards,
    open_source,
    read_verification_bin,
    shard_blocks,
    write_face_records,
    write_shard,
    write_verification_bin,
)
from training.data.recordio import MAGIC, pack_record, unpack_record

MAGIC_BYTES = struct.pack("<I", MAGIC)


def jpeg(label: int, k: int, size: int = 112) -> bytes:
    """A smooth picture that no other (label, k) has."""
    rng = np.random.default_rng([label, k])
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return to_jpeg(np.kron(coarse, np.ones((size // 4, size // 4, 1), np.uint8)))


SAMPLES = [(label, jpeg(label, k)) for label in (3, 7, 20) for k in range(4)]


# --- RecordIO: the container ------------------------------------------------------------


def test_a_record_by_hand(tmp_path: Path) -> None:
    """Bytes put together from the format's description, not by our writer."""
    image = b"JPEG bytes."
    content = struct.pack("<IfQQ", 0, 5.0, 17, 0) + image
    record = MAGIC_BYTES + struct.pack("<I", len(content)) + content + bytes(-len(content) % 4)
    array = struct.pack("<IfQQ", 2, 0.0, 18, 0) + struct.pack("<ff", 5, 1) + image
    second = MAGIC_BYTES + struct.pack("<I", len(array)) + array + bytes(-len(array) % 4)
    (tmp_path / "a.rec").write_bytes(record + second)
    (tmp_path / "a.idx").write_text(f"18\t{len(record)}\n17\t0\n")

    file = RecordFile(tmp_path / "a.rec")
    assert file.keys.tolist() == [17, 18]
    assert unpack_record(file.read(17)).payload == image
    assert unpack_record(file.read(18)).labels.tolist() == [5, 1]
    labels, has_image = file.read_labels(18)
    assert labels.tolist() == [5, 1] and has_image


def test_a_record_that_holds_the_magic_word_is_cut_there(tmp_path: Path) -> None:
    """As dmlc's writer does: cut at aligned occurrences, which are left out."""
    content = b"ABCD" + MAGIC_BYTES + b"E" + MAGIC_BYTES + b"FGH" + MAGIC_BYTES
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, content)
    expected = (
        MAGIC_BYTES + struct.pack("<I", 1 << 29 | 4) + b"ABCD"
        # The second occurrence is not aligned and stays; the third is.
        + MAGIC_BYTES + struct.pack("<I", 2 << 29 | 8) + b"E" + MAGIC_BYTES + b"FGH"
        + MAGIC_BYTES + struct.pack("<I", 3 << 29 | 0)
    )  # fmt: skip
    assert (tmp_path / "a.rec").read_bytes() == expected
    assert RecordFile(tmp_path / "a.rec").read(0) == content


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([MAGIC_BYTES, b"", b"x", b"yz", b"0123", bytes(40)])).map(
            b"".join
        ),
        min_size=1,
        max_size=5,
    )
)
def test_records_come_back_with_and_without_an_index(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("rec") / "a.rec"
    with RecordWriter(path) as writer:
        for key, content in enumerate(contents):
            writer.write(key, content)
    assert path.stat().st_size % 4 == 0
    indexed = RecordFile(path)
    path.with_suffix(".idx").unlink()
    walked = RecordFile(path)
    for file in (indexed, walked):
        assert [file.read(key) for key in file.keys.tolist()] == contents
        assert file.damage is None


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4), st.binary())
def test_headers_come_back(labels: list[float], payload: bytes) -> None:
    record = unpack_record(pack_record(labels, 9, payload))
    assert record.labels.tolist() == labels and record.payload == payload


def test_a_reader_crosses_processes_and_threads(tmp_path: Path) -> None:
    write_face_records(tmp_path / "a.rec", SAMPLES)
    file = RecordFile(tmp_path / "a.rec")
    copy = pickle.loads(pickle.dumps(file))
    assert all(copy.read(k) == file.read(k) for k in file.keys.tolist())
    if hasattr(os, "fork"):
        before = file.read(1)
        child = os.fork()
        if child == 0:  # reads elsewhere in the same descriptor
            os._exit(0 if all(file.read(5) == copy.read(5) for _ in range(50)) else 1)
        assert all(file.read(1) == before for _ in range(50))
        assert os.waitpid(child, 0)[1] == 0


# --- RecordIO: sets of faces ------------------------------------------------------------


@pytest.mark.parametrize("header", [True, False])
def test_a_set_of_faces(tmp_path: Path, header: bool) -> None:
    path = tmp_path / "train.rec"
    assert write_face_records(path, SAMPLES, header=header) == 12
    source = RecordSource(path)
    assert list(source.identities) == ["3", "7", "20"]
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [source.encoded(i) for i in range(12)] == [image for _, image in SAMPLES]
    assert source.chip(0).shape == (112, 112, 3)
    assert not source.failures
    assert open_source(tmp_path).digest() == source.digest()


def test_labels_in_arrays_and_identities_out_of_order(tmp_path: Path) -> None:
    """As some published sets have it: the identity records' order is not the labels'."""
    path = tmp_path / "train.rec"
    with RecordWriter(path) as writer:
        writer.write(0, pack_record([5, 7], 0, b""))
        for key, label in ((1, 9), (2, 9), (3, 4), (4, 4)):
            writer.write(key, pack_record([label, 0], key, jpeg(label, key)))
        writer.write(5, pack_record([1, 3], 5, b""))
        writer.write(6, pack_record([3, 5], 6, b""))
    source = RecordSource(path)
    assert list(source.identities) == ["4", "9"]
    assert source.labels.tolist() == [1, 1, 0, 0]


def test_opening_a_set_with_a_header_reads_one_image_label_per_identity(tmp_path: Path) -> None:
    """5.8 million labels are not read one by one; a wrong one is found when its image is."""
    path = tmp_path / "train.rec"
    write_face_records(path, SAMPLES)
    file = RecordFile(path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, int(file.offsets[3]) + 8 + 4, 99.0)  # of the third image
    path.write_bytes(data)
    source = RecordSource(path)
    assert len(source) == 12 and not source.failures
    with pytest.raises(ImageError, match=r"record 3: its label is 99, but .* say 3"):
        source.encoded(2)


@pytest.mark.parametrize("header", [True, False])
def test_damaged_records_are_counted_up_to_a_limit(tmp_path: Path, header: bool) -> None:
    path = tmp_path / "train.rec"
    write_face_records(path, SAMPLES, header=header)
    offset = int(RecordFile(path).offsets[1 if header else 0])  # the first image
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = b"\0\0\0\0"
    path.write_bytes(data)
    source = RecordSource(path)
    assert len(source.failures) == 1
    assert "expected the magic word, found 00000000" in source.failures[0].reason
    assert source.labels.tolist() == [0] * 3 + [1] * 4 + [2] * 4
    assert [source.encoded(i) for i in range(11)] == [image for _, image in SAMPLES[1:]]
    with pytest.raises(ConfigError, match="1 damaged records, more than the limit of 0"):
        RecordSource(path, max_failures=0)


def with_floats(path: Path, key: int, at: int, *values: float) -> RecordSource:
    """The set at ``path`` with other numbers at a byte of a record's content."""
    data = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(values)}f", data, int(RecordFile(path).offsets[key]) + 8 + at, *values)
    path.write_bytes(data)
    return RecordSource(path)


BAD_LABELS = [float("nan"), float("inf"), 1e30, 3e9, 2.0**24 + 2, -1.0, 3.5]


@pytest.mark.parametrize("label", BAD_LABELS)
def test_a_damaged_label_is_one_failure_and_no_new_identity(tmp_path: Path, label: float) -> None:
    """Without a header every label is read at once; with one, that of each identity's first
    image, and the others when they are."""
    path = tmp_path / "train.rec"
    write_face_records(path, SAMPLES, header=False)
    source = with_floats(path, 5, 4, label)
    assert list(source.identities) == ["3", "7", "20"] and len(source) == 11
    assert [f.source for f in source.failures] == [f"{path}, record 5"]
    assert "is no whole number from 0 to 16777216" in source.failures[0].reason

    write_face_records(path, SAMPLES)
    source = with_floats(path, 5, 4, label)  # key 5: the first of label 7
    assert list(source.identities) == ["3", "7", "20"] and len(source) == 11
    assert [f.source for f in source.failures] == [f"{path}, record 5"]

    write_face_records(path, SAMPLES)
    source = with_floats(path, 6, 4, label)
    assert len(source) == 12 and not source.failures
    with pytest.raises(ImageError, match=r"record 6: its label .* is no whole number"):
        source.encoded(5)


def test_labels_up_to_what_float32_holds_exactly(tmp_path: Path) -> None:
    path = tmp_path / "train.rec"
    write_face_records(path, [(0, jpeg(0, 0)), (2**24, jpeg(1, 0))], header=False)
    source = RecordSource(path)
    assert list(source.identities) == ["0", "16777216"] and not source.failures


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, -4.0, 2.5])
@pytest.mark.parametrize("at", [24, 28])
def test_damaged_ranges(tmp_path: Path, value: float, at: int) -> None:
    """The header's: an error. An identity's: its images are lost, and that is one failure."""
    path = tmp_path / "train.rec"
    write_face_records(path, SAMPLES)
    source = with_floats(path, 14, at, value)  # of the second identity: keys 13, 14, 15
    assert list(source.identities) == ["3", "20"]
    assert [f.source for f in source.failures] == [f"{path}, record 14"]
    write_face_records(path, SAMPLES)
    with pytest.raises(ConfigError, match=r"the header record .* is missing or damaged"):
        with_floats(path, 0, at, value)


def test_an_identity_record_that_lost_its_range_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "train.rec"
    write_face_records(path, SAMPLES)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, int(RecordFile(path).offsets[14]) + 8, 0)  # labels that follow
    path.write_bytes(data)
    source = RecordSource(path)
    assert list(source.identities) == ["3", "20"]
    assert "no range of an identity's images" in source.failures[0].reason


def test_a_record_damaged_behind_its_header_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "train.rec"
    write_face_records(path, SAMPLES)
    offset = int(RecordFile(path).offsets[2])
    data = bytearray(path.read_bytes())
    data[offset + 60 : offset + 400] = bytes(340)
    path.write_bytes(data)
    source = RecordSource(path)
    with pytest.raises(ImageError, match=r"train\.rec, record 2: "):
        source.chip(1)
    assert source.chip(2).shape == (112, 112, 3)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "train.rec"
    write_face_records(path, SAMPLES, header=False)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    source = RecordSource(path)  # the last record's label is still there
    with pytest.raises(ImageError, match=r"record 11 .*the file ends after"):
        source.encoded(11)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="points beyond the end"):
        RecordSource(path)
    path.with_suffix(".idx").unlink()
    with pytest.raises(ConfigError, match=r"no whole record [456] at byte \d+; the [\d,]+ bytes"):
        RecordSource(path)


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, b"\0"), (6, b"\xff"), (4, b"\xf0")],
    ids=["magic word", "length beyond the end", "length that leads into an image"],
)
def test_damage_that_ends_the_walk_is_an_error(tmp_path: Path, at: int, value: bytes) -> None:
    """Not one failure, which every limit would let pass: it may hide nearly the whole set."""
    path = tmp_path / "train.rec"
    write_face_records(path, SAMPLES, header=False)
    whole = path.read_bytes()
    third = int(RecordFile(path).offsets[2])
    path.write_bytes(whole[: third + at] + value + whole[third + at + 1 :])
    assert len(RecordSource(path)) >= 11  # the index reaches over the damage
    path.with_suffix(".idx").unlink()
    with pytest.raises(ConfigError) as caught:
        RecordSource(path, max_failures=100)
    found = re.search(r"no whole record [23] at byte (\d+); the ([\d,]+) bytes", str(caught.value))
    assert found and "Put the set's .idx beside it" in str(caught.value)
    assert int(found[1]) + int(found[2].replace(",", "")) == len(whole)
    path.write_bytes(whole[:third])  # as the message says
    assert len(RecordSource(path)) == 2 and not RecordSource(path).failures


def test_a_lost_header_is_not_taken_for_a_set_without_one(tmp_path: Path) -> None:
    path = tmp_path / "train.rec"
    write_face_records(path, SAMPLES)
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", 7 << 29)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"the header record .* is missing or damaged"):
        RecordSource(path)


def test_what_is_no_record_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.rec: cannot be read: No such file"):
        RecordSource(tmp_path / "none.rec")
    (tmp_path / "a.rec").write_bytes(b"")
    with pytest.raises(ConfigError, match="not a RecordIO file"):
        RecordSource(tmp_path / "a.rec")
    write_face_records(tmp_path / "b.rec", SAMPLES)
    for text, message in (
        ("one\ttwo\n", "not an index of lines"),
        ("", "b.idx: empty"),
        ("1\t0\n1\t0\n", "a key occurs twice"),
    ):
        (tmp_path / "b.idx").write_text(text)
        with pytest.raises(ConfigError, match=message):
            RecordSource(tmp_path / "b.rec")


# --- tar shards -------------------------------------------------------------------------


def shards(folder: Path) -> list[Path]:
    for number in range(3):
        part = SAMPLES[4 * number : 4 * number + 4]
        write_shard(
            folder / f"faces-{number:03d}.tar",
            [(f"{number}/{i:04d}", str(label), image) for i, (label, image) in enumerate(part)],
        )
    return expand_shards(f"{folder}/faces-{{000..002}}.tar")


def test_shards(tmp_path: Path) -> None:
    source = ShardSource(shards(tmp_path))
    assert list(source.identities) == ["3", "7", "20"]  # numbers in their order
    assert [source.encoded(i) for i in range(12)] == [image for _, image in SAMPLES]
    assert shard_blocks(source).tolist() == [0, 4, 8]
    assert shard_blocks(source.subset([1, 2, 5, 9, 11])).tolist() == [0, 2, 3]
    assert shard_blocks(source.subset([5, 1])) is None
    assert source.name(5).endswith("faces-001.tar, sample 1/0001")
    ShuffleSampler(12, blocks=shard_blocks(source), window=4)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.encoded(7) == source.encoded(7)


@pytest.mark.parametrize("pattern", ["{d}", "{d}/*.tar", "{d}/faces-{{000..002}}.tar"])
def test_patterns(tmp_path: Path, pattern: str) -> None:
    shards(tmp_path)
    assert len(open_source(pattern.format(d=tmp_path))) == 12


def test_shards_that_webdataset_wrote(tmp_path: Path) -> None:
    """The reference writer: .cls as text, .json as an object; other files are passed over."""
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a/01", "jpg": jpeg(1, 0), "cls": 1, "txt": "a caption"})
        writer.write({"__key__": "a/02", "jpg": jpeg(2, 0), "json": {"identity": "Ann", "age": 3}})
        writer.write({"__key__": "a/03", "jpg": jpeg(2, 1), "json": {"label": 1}})
    source = ShardSource([tmp_path / "a.tar"])
    assert list(source.identities) == ["1", "Ann"]
    assert source.labels.tolist() == [0, 1, 0]
    assert [source.encoded(i) for i in range(3)] == [jpeg(1, 0), jpeg(2, 0), jpeg(2, 1)]


def test_webdataset_reads_ours(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    paths = shards(tmp_path)
    stream = webdataset.WebDataset([str(p) for p in paths], shardshuffle=False)
    assert [(int(s["cls"]), s["jpg"]) for s in stream] == SAMPLES


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_unusable_samples_are_counted_up_to_a_limit(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "a.tar",
        {
            "1.jpg": jpeg(1, 1),
            "1.cls": b"1",
            "2.jpg": jpeg(1, 2),
            "3.cls": b"1",
            "4.jpg": jpeg(1, 4),
            "4.json": b"{broken",
            "5.jpg": jpeg(1, 5),
            "5.json": b'{"age": 3}',
            "6.PNG": jpeg(1, 6),
            "6.cls": b"2",
        },
    )
    source = ShardSource([path])
    assert len(source) == 2
    reasons = " ".join(f.reason for f in source.failures)
    assert len(source.failures) == 4
    for part in (
        "sample 2: no label",
        "sample 3: no image",
        "4.json cannot be read",
        "no identity",
    ):
        assert part in reasons
    with pytest.raises(ConfigError, match="4 samples cannot be used, more than the limit of 2"):
        ShardSource([path], max_failures=2)


def test_shards_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        ShardSource([tmp_path / "a.tar"])
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(ConfigError, match="not an uncompressed tar file"):
        open_source(tmp_path / "a.tar.gz")
    with pytest.raises(ConfigError, match=r"no samples; a sample is an image and a label"):
        ShardSource([tar_of(tmp_path / "empty.tar", {"readme.txt": b"hello"})])
    with pytest.raises(ConfigError, match="no tar shards there"):
        expand_shards(f"{tmp_path}/x*.tar")
    with pytest.raises(ConfigError, match="expected a range of numbers"):
        expand_shards("faces-{a,b}.tar")


def test_a_shard_cut_off(tmp_path: Path) -> None:
    [path] = shards(tmp_path)[:1]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = ShardSource([path])
    assert 1 <= len(source) < 4
    assert "unreadable behind" in source.failures[0].reason or len(source.failures) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data, at: data[: at + 148] + b"x" + data[at + 149 :], "bytes lost: no header at"),
        (lambda data, at: data[:at] + bytes(512) + data[at + 512 :], "bytes lost: no header at"),
        (lambda data, at: data[: at + 300], "300 bytes lost: no header at"),
        (lambda data, at: data[:at], "the file is cut at"),
        (lambda data, at: data[: at + 600], "unexpected end of data"),
    ],
    ids=["one byte of a header", "a hole", "cut in a header", "cut before one", "cut in an image"],
)
def test_what_a_shards_damage_hides_is_reported(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    """tarfile takes a header that it cannot read for the end of the file and says nothing."""
    path = shards(tmp_path)[0]
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        third = tar.getmember("0/0002.jpg").offset
    path.write_bytes(damage(data, third))
    source = ShardSource([path])
    assert len(source) == 2
    [failure] = source.failures
    assert f"{path}: unreadable behind 0/0001" in failure.reason and message in failure.reason
    with pytest.raises(ConfigError, match=r"more than the limit of 0; the first: .*unreadable"):
        ShardSource([path], max_failures=0)


def test_a_shard_may_end_with_any_number_of_empty_blocks(tmp_path: Path) -> None:
    path = shards(tmp_path)[0]
    data = path.read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512)
    for empty in (1, 2, 5000):
        path.write_bytes(data + bytes(512 * empty))
        assert len(ShardSource([path])) == 4 and not ShardSource([path]).failures


def test_three_formats_of_the_same_data_have_one_digest(tmp_path: Path) -> None:
    write_face_records(tmp_path / "a.rec", SAMPLES)
    write_shard(
        tmp_path / "a.tar",
        [(f"{i}", str(label), image) for i, (label, image) in reversed(list(enumerate(SAMPLES)))],
    )
    for i, (label, image) in enumerate(SAMPLES):
        folder = tmp_path / "folder" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{100 - i}.jpg").write_bytes(image)
    sources = [
        RecordSource(tmp_path / "a.rec"),
        ShardSource([tmp_path / "a.tar"]),
        ImageFolder(tmp_path / "folder"),
    ]
    digests = {source.digest() for source in sources}
    assert len(digests) == 1 and len(digests.pop()) == 64
    assert sources[0].subset(range(11)).digest() != sources[0].digest()


# --- verification sets ------------------------------------------------------------------


IMAGES = [jpeg(9, k) for k in range(4)]


def python2_string(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text


def python2_pickle() -> bytes:
    """Protocol 2 by Python 2 and NumPy 1: str where Python 3 has bytes."""
    images = b"](" + b"".join(python2_string(image) for image in IMAGES) + b"e"
    return b"\x80\x02" + images + b"](\x88\x89e\x86."


def python2_arrays() -> bytes:
    """The same, with each image as a NumPy array."""
    arrays = b""
    for image in IMAGES:
        arrays += (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            b"(K\x01J"
            + struct.pack("<i", len(image))
            + b"\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            + python2_string(image)
            + b"tb"
        )
    return b"\x80\x02](" + arrays + b"e](\x88\x89e\x86."


def ragged(arrays: list[np.ndarray]) -> np.ndarray:
    out = np.empty(len(arrays), dtype=object)
    out[:] = arrays
    return out


ARRAYS = [np.frombuffer(image, np.uint8) for image in IMAGES]


@pytest.mark.parametrize(
    "content",
    [
        *[pickle.dumps((IMAGES, [True, False]), p) for p in range(6)],
        *[pickle.dumps((ARRAYS, np.array([True, False])), p) for p in range(6)],
        pickle.dumps([ragged(ARRAYS), [np.True_, np.False_]], 4),
        pickle.dumps((tuple(map(bytearray, IMAGES)), np.array([1, 0])), 2),
        pickle.dumps((IMAGES, np.array([1.0, 0.0], ">f4")), 4),
        python2_pickle(),
        python2_arrays(),
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_every_kind_of_bin_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lfw.bin").write_bytes(content)
    pairs = read_verification_bin(tmp_path / "lfw.bin")
    assert list(pairs.images) == IMAGES
    assert pairs.same.tolist() == [True, False]
    assert pairs.image(3).shape == (112, 112, 3)


def test_bin_files_by_older_numpy_names(tmp_path: Path) -> None:
    """NumPy 1 wrote numpy.core where NumPy 2 writes numpy._core."""
    content = pickle.dumps((ARRAYS, [True, False]), 2)
    assert b"numpy._core.multiarray" in content
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "lfw.bin").write_bytes(old)
    assert list(read_verification_bin(tmp_path / "lfw.bin").images) == IMAGES


def test_bin_files_come_back(tmp_path: Path) -> None:
    write_verification_bin(tmp_path / "a.bin", IMAGES, [False, True])
    pairs = read_verification_bin(tmp_path / "a.bin")
    assert (list(pairs.images), pairs.same.tolist(), len(pairs)) == (IMAGES, [False, True], 2)
    with pytest.raises(ValueError, match="4 images for 3 pairs"):
        write_verification_bin(tmp_path / "a.bin", IMAGES, [False, True, True])


class Call:
    """Pickles to a call of ``function``."""

    def __init__(self, function, *arguments) -> None:  # type: ignore[no-untyped-def]
        self.call = (function, arguments)

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "attack",
    [
        lambda p: Call(os.system, f"touch {p}"),
        lambda p: Call(Path.touch, p),
        lambda p: Call(eval, f"open({str(p)!r}, 'w')"),
        lambda p: Call(getattr, np.ndarray, "tofile"),
        lambda p: Call(np.load, str(p)),
        lambda p: Call(np.memmap, str(p), "u1", "w+", 0, (4,)),
        lambda p: Call(__import__, "os"),
    ],
)
def test_hostile_bin_files_run_nothing(tmp_path: Path, attack, protocol: int) -> None:  # type: ignore[no-untyped-def]
    proof = tmp_path / "proof"
    (tmp_path / "a.bin").write_bytes(pickle.dumps((attack(proof), [True]), protocol))
    with pytest.raises(ConfigError, match=r"refused: it wants .* loaded"):
        read_verification_bin(tmp_path / "a.bin")
    assert not proof.exists()


@pytest.mark.parametrize(
    "content",
    [
        # A dtype whose state declares bytes to be object pointers (flags 0x3f).
        b"\x80\x02cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNK\x08K\x08K\x3ftb.",
        # numpy.ndarray itself, called with a shape.
        b"\x80\x02cnumpy\nndarray\nJ\x00\x00\x00\x40\x85\x85R.",
        # A dtype of objects read from bytes.
        b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02O8K\x00K\x01\x87RU\x08AAAAAAAA\x86R.",
        # A persistent id.
        b"\x80\x02U\x04evilQ.",
    ],
)
def test_numpys_own_restoring_is_out_of_reach(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.bin"):
        read_verification_bin(tmp_path / "a.bin")
    assert np.dtype("u1").itemsize == 1 and not np.dtype("u1").hasobject


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged, or not a verification set"),
        (b"\xff\xd8\xff\xe0 a JPEG", "damaged, or not a verification set"),
        (pickle.dumps((IMAGES, [True, False]))[:-300], "damaged, or not a verification set"),
        (pickle.dumps({"images": IMAGES}), "expected (images, issame)"),
        (pickle.dumps((IMAGES, [True])), "4 images do not make 1 pairs"),
        (pickle.dumps(([], [])), "0 images do not make 0 pairs"),
        (pickle.dumps(([1.5, 2.5], [True])), "an image is bytes or an array of bytes, got float"),
    ],
)
def test_what_is_no_verification_set(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_verification_bin(tmp_path / "a.bin")
    assert message in str(caught.value) and "a.bin" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_verification_bin(tmp_path / "missing.bin")


def test_an_unreadable_image_of_a_pair_is_named(tmp_path: Path) -> None:
    write_verification_bin(tmp_path / "a.bin", [IMAGES[0], b"no image"], [True])
    with pytest.raises(ImageError, match=r"a\.bin, image 1: not an image"):
        read_verification_bin(tmp_path / "a.bin").image(1)
