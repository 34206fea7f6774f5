"""Sources of faces: folders, photos aligned on first use, splits, and bad input."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec.alignment import align
from facerec.errors import ConfigError, ImageError, ModelError
from facerec.image import load_image, to_jpeg
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline
from facerec.types import Detections, RGBImage

torch = pytest.importorskip("torch")

from training.backbones import create_backbone  # noqa: E402
from training.data import (  # noqa: E402
    AlignedPhotos,
    ArraySource,
    FaceDataset,
    ImageFolder,
    OrderedSampler,
    align_photos,
    in_memory,
    keep_identities,
    make_loader,
    open_source,
    require_trainable,
    split_identities,
    summarise,
)
from training.data import photos as photos_module  # noqa: E402
from training.data.photos import choose_face  # noqa: E402
from training.data.sources import PackedStrings  # noqa: E402
from training.data.splits import split_fraction  # noqa: E402


def picture(seed: int, size: int = 112) -> RGBImage:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((size // 4, size // 4, 1), np.uint8))


def write_folder(root: Path, counts: dict[str, int], size: int = 112) -> Path:
    for number, (identity, count) in enumerate(counts.items()):
        (root / identity).mkdir(parents=True)
        for k in range(count):
            image = picture(100 * number + k, size)
            (root / identity / f"{k}.jpg").write_bytes(to_jpeg(image))
    return root


def many(names: list[str], each: int = 2) -> ArraySource:
    labels = np.repeat(np.arange(len(names)), each)
    return ArraySource(np.zeros((len(labels), 8, 8, 3), np.uint8), labels, "arcface-112", names)


# --- folders of chips -------------------------------------------------------------------


def test_a_folder_of_chips(tmp_path: Path) -> None:
    write_folder(tmp_path, {"Bob": 2, "Ann": 3, "Zoë": 1})
    (tmp_path / "Ann" / "notes.txt").write_text("not a photo")
    (tmp_path / "Ann" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "nobody").mkdir()
    (tmp_path / "loose.jpg").write_bytes(to_jpeg(picture(0)))
    (tmp_path / "Bob" / "2019").mkdir()
    (tmp_path / "Bob" / "2019" / "x.JPG").write_bytes(to_jpeg(picture(9)))
    source = ImageFolder(tmp_path)
    assert list(source.identities) == ["Ann", "Bob", "Zoë"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert (source.template, source.size) == ("arcface-112", 112)
    assert source.name(3) == str(tmp_path / "Bob" / "0.jpg")
    np.testing.assert_array_equal(source.chip(3), load_image(tmp_path / "Bob" / "0.jpg"))
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.chip(5), source.chip(5))
    text = str(summarise(source))
    assert text == ("7 images of 3 identities (1 to 3 each, median 3), 1 with a single image")


def test_the_images_size_names_the_template(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(to_jpeg(np.zeros((150, 150, 3), np.uint8)))
    source = open_source(tmp_path)
    assert isinstance(source, ImageFolder)
    assert (source.template, source.size) == ("dlib-150", 150)


def test_a_template_at_another_size_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 1, "b": 1}, size=64)
    with pytest.raises(ConfigError, match="images of 64x64 are no template's own size"):
        ImageFolder(tmp_path)
    source = ImageFolder(tmp_path, "arcface-112")
    assert source.size == 64 and source.chip(0).shape == (64, 64, 3)
    with pytest.raises(ConfigError, match="no alignment template 'arc'"):
        ImageFolder(tmp_path, "arc", 64)


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 2, "b": 1})
    (tmp_path / "b" / "big.jpg").write_bytes(to_jpeg(picture(3, 200)))
    source = ImageFolder(tmp_path, "arcface-112", 112)
    with pytest.raises(ImageError, match=r"big\.jpg: 200x200 pixels, where aligned .* 112x112"):
        source.chip(3)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 2, "b": 1})
    (tmp_path / "a" / "0.jpg").write_bytes(b"")
    (tmp_path / "a" / "1.jpg").write_bytes(to_jpeg(picture(1))[:200])
    source = ImageFolder(tmp_path, "arcface-112", 112)
    with pytest.raises(ImageError, match=r"a.0\.jpg: empty"):
        source.chip(0)
    with pytest.raises(ImageError, match=r"a.1\.jpg: damaged or truncated"):
        source.chip(1)
    (tmp_path / "b" / "0.jpg").unlink()
    with pytest.raises(ImageError, match="no such file"):
        source.chip(2)


def test_folders_that_hold_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        ImageFolder(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"no images\. This needs a folder per person"):
        ImageFolder(tmp_path)
    (tmp_path / "somebody").mkdir()
    with pytest.raises(ConfigError, match=r"no images\. This needs a folder per person"):
        open_source(tmp_path)
    (tmp_path / "a.jpg").write_bytes(to_jpeg(picture(0)))
    with pytest.raises(ConfigError, match="1 images lie in the folder itself"):
        ImageFolder(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read as a folder"):
        ImageFolder(tmp_path / "a.jpg")


def test_one_identity_and_single_photos(tmp_path: Path) -> None:
    one = ImageFolder(write_folder(tmp_path / "one", {"a": 3}))
    with pytest.raises(ConfigError, match="1 identity; training tells people apart"):
        require_trainable(one)
    singles = ImageFolder(write_folder(tmp_path / "singles", {"a": 1, "b": 1, "c": 1}))
    with pytest.raises(ConfigError, match="every one of the 3 identities has a single image"):
        require_trainable(singles)
    with pytest.raises(ConfigError, match="0 of 3 identities have at least 2 images"):
        keep_identities(singles, 2)
    require_trainable(ImageFolder(write_folder(tmp_path / "fine", {"a": 2, "b": 1})))


def test_identities_with_few_images_leave() -> None:
    source = ArraySource(
        np.zeros((9, 8, 8, 3), np.uint8), [5, 5, 5, 2, 9, 9, 9, 9, 2], "arcface-112"
    )
    kept = keep_identities(source, 3)
    assert list(kept.identities) == ["5", "9"]
    assert kept.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert keep_identities(source, 1) is source


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=9)))
def test_packed_strings_are_a_list(strings: list[str]) -> None:
    packed = PackedStrings(strings)
    assert list(packed) == strings and packed[:2] == strings[:2] and len(packed) == len(strings)
    if strings:
        assert packed[-1] == strings[-1]
    with pytest.raises(IndexError):
        packed[len(strings)]


# --- subsets and digests ----------------------------------------------------------------


def test_a_subset_of_a_subset() -> None:
    chips = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    source = ArraySource(chips, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], "arcface-112", list("abcde"))
    part = source.subset([9, 2, 3, 8, 5]).subset([0, 2, 3])
    assert [int(part.chip(i)[0, 0, 0]) for i in range(3)] == [9, 3, 8]
    assert list(part.identities) == ["b", "e"] and part.labels.tolist() == [1, 0, 1]
    assert part.name(0) == source.name(9) and part.encoded(1) == source.encoded(3)


def test_the_digest_is_of_content_and_labels_alone(tmp_path: Path) -> None:
    first = ImageFolder(write_folder(tmp_path / "a", {"x": 3, "y": 2}))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "x" / "0.jpg").rename(tmp_path / "b" / "x" / "9.jpg")
    assert ImageFolder(tmp_path / "b").digest() == first.digest()
    assert first.subset([4, 2, 0, 1, 3]).digest() == first.digest()
    assert first.subset([0, 1, 2, 3]).digest() != first.digest()

    (tmp_path / "b" / "x" / "9.jpg").rename(tmp_path / "b" / "y" / "9.jpg")
    assert ImageFolder(tmp_path / "b").digest() != first.digest()  # another label
    (tmp_path / "a" / "x" / "0.jpg").write_bytes(to_jpeg(picture(77)))
    assert ImageFolder(tmp_path / "a").digest() != first.subset([0, 1, 2]).digest()


def test_the_digest_stays_what_it_is() -> None:
    """It is written into packs: a change of it must be meant."""
    source = ArraySource(np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3), [0, 1], "arcface-112")
    rows = []
    for i, name in enumerate((b"0", b"1")):
        content = hashlib.sha256(bytes(range(48 * i, 48 * i + 48))).digest()
        rows.append(hashlib.sha256(name + b"\0" + content).digest())
    written_out = hashlib.sha256(b"facerec data 1\0" + b"".join(sorted(rows))).hexdigest()
    assert source.digest() == written_out


# --- splits -----------------------------------------------------------------------------


NAMES = [f"person {i}" for i in range(400)]


def test_identities_are_split_and_images_are_not() -> None:
    split = split_identities(many(NAMES, 3), val=0.2, test=0.1, seed=4)
    assert split.val is not None and split.test is not None
    parts = [set(part.identities) for part in (split.train, split.val, split.test)]
    assert set.union(*parts) == set(NAMES) and sum(map(len, parts)) == 400
    assert [len(part) for part in (split.train, split.val, split.test)] == [
        3 * len(p) for p in parts
    ]
    assert 250 < len(parts[0]) < 310 and 55 < len(parts[1]) < 105 and 22 < len(parts[2]) < 58


def test_a_share_of_zero_is_no_part() -> None:
    split = split_identities(many(NAMES), val=0.2)
    assert split.test is None
    everything = split_identities(many(NAMES), val=0)
    assert everything.val is None and len(everything.train) == 800


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(40, 399))
def test_adding_people_moves_nobody(seed: int, before: int) -> None:
    def where(names: list[str]) -> dict[str, str]:
        split = split_identities(many(names), val=0.25, test=0.25, seed=seed)
        return {n: p for p in ("train", "val", "test") for n in getattr(split, p).identities}

    few, all_ = where(NAMES[:before]), where(NAMES)
    assert few.items() <= all_.items()


def test_fractions_are_uniform_and_differ_by_seed() -> None:
    u = np.sort([split_fraction(name, 0) for name in NAMES])
    assert np.abs(u - (np.arange(400) + 0.5) / 400).max() < 0.08
    assert split_fraction("Ann", 0) != split_fraction("Ann", 1)
    digest = hashlib.sha256(b"0\0Ann").hexdigest()  # written out: splits outlive versions
    assert split_fraction("Ann", 0) == int(digest[:14], 16) / 2**56


def test_too_few_people_for_a_split() -> None:
    names = NAMES[:8]
    seed = next(s for s in range(100) if sum(split_fraction(n, s) < 0.2 for n in names) < 2)
    with pytest.raises(ConfigError, match=r"of 8 identities into .*; seed \d+ does") as caught:
        split_identities(many(names), val=0.2, seed=seed)
    better = int(str(caught.value).split("; seed ")[1].split()[0])
    assert len(split_identities(many(names), val=0.2, seed=better).val or []) >= 4
    with pytest.raises(ConfigError, match="add people, or change the shares"):
        split_identities(many(names[:3]), val=0.2)
    with pytest.raises(ConfigError, match="at least 0 and sum below 1"):
        split_identities(many(names), val=0.6, test=0.4)


# --- photos, aligned on first use ---------------------------------------------------------


@pytest.fixture()
def photos(
    tmp_path: Path, astronaut_path: Path, group_photo_path: Path, close_up_path: Path
) -> Path:
    """Three people, five photos; and three files without a face."""
    root = tmp_path / "photos"
    for name in ("eileen", "group", "tom"):
        (root / name).mkdir(parents=True)
    shutil.copy(astronaut_path, root / "eileen" / "1.png")
    shutil.copy(astronaut_path, root / "eileen" / "again.png")
    shutil.copy(group_photo_path, root / "group" / "t1.jpg")
    (root / "group" / "half.jpg").write_bytes(group_photo_path.read_bytes()[:5000])
    (root / "group" / "blank.jpg").write_bytes(to_jpeg(np.full((200, 300, 3), 90, np.uint8)))
    (root / "tom" / "empty.jpg").write_bytes(b"")
    enlarged = np.kron(load_image(close_up_path), np.ones((3, 3, 1), np.uint8))
    (root / "tom" / "1.jpg").write_bytes(to_jpeg(np.pad(enlarged, ((99, 99), (99, 99), (0, 0)))))
    return root


class NoDetector(Pipeline):
    """A pipeline whose detector must not be needed."""

    def __init__(self) -> None: ...

    @property
    def detector(self):  # type: ignore[no-untyped-def,override]
        raise AssertionError("the cache should have had it")


def aligned(photos: Path, pack: Pack, pipeline: Pipeline, **options) -> AlignedPhotos:  # type: ignore[no-untyped-def]
    return align_photos(photos, pack, photos.parent / "cache", pipeline=pipeline, **options)


def test_photos_are_aligned_once(photos: Path, bundled_pack: Pack, pipeline: Pipeline) -> None:
    first = aligned(photos, bundled_pack, pipeline)
    assert first.new == 6  # the two equal photos are one
    assert list(first.source.identities) == ["eileen", "group", "tom"]
    assert first.source.labels.tolist() == [0, 0, 1, 2]
    assert (first.source.template, first.source.size) == ("dlib-150", 150)
    codes = {Path(f.source).name: f.code for f in first.failures}
    assert codes == {"half.jpg": "unreadable", "blank.jpg": "no_face", "empty.jpg": "unreadable"}
    assert all(f.reason.startswith(f.source) for f in first.failures)
    assert [Path(p).name for p in first.ambiguous] == ["t1.jpg"]

    second = aligned(photos, bundled_pack, NoDetector())
    assert second.new == 0 and second.failures == first.failures
    assert second.ambiguous == first.ambiguous
    assert second.source.digest() == first.source.digest()


def test_a_chip_is_what_the_pipeline_would_embed(
    photos: Path, astronaut: RGBImage, bundled_pack: Pack, pipeline: Pipeline
) -> None:
    """As a JPEG, so within what compression changes; at 112 pixels likewise."""
    [found] = pipeline.detector.detect([astronaut])
    for template, size in (("dlib-150", 150), ("arcface-112", 112)):
        source = aligned(photos, bundled_pack, pipeline, template=template, size=size).source
        [expected] = align(astronaut, found.landmarks[:1], template, size)
        assert np.abs(source.chip(0).astype(float) - expected).mean() < 2
        assert source.name(0) == str(photos / "eileen" / "1.png")


def test_an_interrupted_run_goes_on(
    photos: Path, bundled_pack: Pack, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos_module, "_CHUNK", 1)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        aligned(photos, bundled_pack, pipeline, progress=stop)
    [ledger] = (photos.parent / "cache").glob("aligned-*/photos.jsonl")
    with ledger.open("a") as stream:
        stream.write('\n{"photo": "cut of')  # as a crash in the middle of a write leaves it
    told = []
    again = aligned(photos, bundled_pack, pipeline, progress=lambda *p: told.append(p))
    assert again.new == 4 and told[-1] == (4, 4)
    assert again.source.labels.tolist() == [0, 0, 1, 2]
    assert not list((photos.parent / "cache").rglob("*.part"))


def test_a_chip_that_is_gone_is_made_again(
    photos: Path, bundled_pack: Pack, pipeline: Pipeline
) -> None:
    first = aligned(photos, bundled_pack, pipeline)
    [*chips] = (photos.parent / "cache").rglob("*.jpg")
    assert len(chips) == 3
    chips[0].unlink()
    second = aligned(photos, bundled_pack, pipeline)
    assert second.new == 1 and second.source.digest() == first.source.digest()


def test_a_changed_photo_is_aligned_anew(
    photos: Path, bundled_pack: Pack, pipeline: Pipeline, astronaut: RGBImage
) -> None:
    first = aligned(photos, bundled_pack, pipeline)
    (photos / "eileen" / "1.png").write_bytes(to_jpeg(astronaut[:, ::-1]))
    second = aligned(photos, bundled_pack, pipeline)
    assert second.new == 1
    before, after = (s.chip(0).astype(float) for s in (first.source, second.source))
    assert np.abs(after[:, ::-1] - before).mean() < 0.5 * np.abs(after - before).mean()


def test_another_detector_or_size_has_a_cache_of_its_own(
    photos: Path, bundled_pack: Pack, pipeline: Pipeline
) -> None:
    aligned(photos, bundled_pack, pipeline)
    with pytest.raises(AssertionError, match="the cache should have had it"):
        aligned(photos, bundled_pack, NoDetector(), template="arcface-112", size=112)
    manifest = bundled_pack.manifest
    detector = manifest.detector.model_copy(update={"score_threshold": 0.6})
    other = Pack(bundled_pack.folder, manifest.model_copy(update={"detector": detector}))
    with pytest.raises(AssertionError, match="the cache should have had it"):
        aligned(photos, other, NoDetector())


def test_photos_without_any_face(tmp_path: Path, bundled_pack: Pack, pipeline: Pipeline) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        blank = np.full((200, 300, 3), 90, np.uint8)
        (tmp_path / "photos" / name / "1.jpg").write_bytes(to_jpeg(blank))
    with pytest.raises(ConfigError, match=r"none of 2 photos shows a face .* no face found"):
        aligned(tmp_path / "photos", bundled_pack, pipeline)


def test_a_cache_that_cannot_be_written(
    photos: Path, bundled_pack: Pack, pipeline: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        align_photos(photos, bundled_pack, tmp_path / "file", pipeline=pipeline)


def test_a_full_disk_is_an_error_and_loses_nothing(
    photos: Path, bundled_pack: Pack, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(photos_module, "write_atomically", full)
        with pytest.raises(ConfigError, match="No space left on device"):
            aligned(photos, bundled_pack, pipeline)
    assert aligned(photos, bundled_pack, pipeline).source.labels.tolist() == [0, 0, 1, 2]


def test_of_several_faces_the_central_large_one_is_taken() -> None:
    def found(*boxes: tuple[float, ...]) -> Detections:
        n = len(boxes)
        return Detections(np.array(boxes), np.full(n, 0.9), np.zeros((n, 5, 2)))

    small_central, large_aside, large_central = (
        (280, 180, 360, 280),
        (0, 0, 110, 140),
        (250, 150, 390, 330),
    )
    assert choose_face(found(large_aside, small_central), 640, 480) == 1
    assert choose_face(found(small_central, large_central), 640, 480) == 1
    assert choose_face(found(large_aside), 640, 480) == 0


def test_opening_photos_needs_a_detector(photos: Path, tmp_path: Path, bundled_pack: Pack) -> None:
    with pytest.raises(ConfigError, match=r"photos that have to be aligned first"):
        open_source(photos)
    source = open_source(
        photos,
        pack=bundled_pack,
        cache=tmp_path / "cache",
        preprocessing=create_backbone("iresnet10", width=0.125, input_size=64).preprocessing,
    )
    assert (source.template, source.size) == ("arcface-112", 64)
    assert len(source.failures) == 3


def test_a_pack_whose_detector_is_gone(photos: Path, tmp_path: Path, bundled_pack: Pack) -> None:
    gone = Pack(tmp_path, bundled_pack.manifest)
    with pytest.raises(ModelError, match="is missing"):
        align_photos(photos, gone, tmp_path / "cache")


# --- in memory --------------------------------------------------------------------------


def test_chips_in_memory_are_the_datasets(tmp_path: Path) -> None:
    source = ImageFolder(write_folder(tmp_path, {"a": 3, "b": 2}))
    preprocessing = create_backbone("dlib_resnet29", pretrained=False).preprocessing
    held = in_memory(source, preprocessing)
    assert held.labels.tolist() == source.labels.tolist()
    assert (held.template, held.size) == ("dlib-150", 150)
    expected, got = FaceDataset(source, preprocessing), FaceDataset(held, preprocessing)
    for i in range(5):
        torch.testing.assert_close(got[i][0], expected[i][0], rtol=0, atol=0)


def test_arrays_that_do_not_fit() -> None:
    chips = np.zeros((3, 8, 8, 3), np.uint8)
    for bad, labels, names in (
        (chips.astype(float), [0, 0, 1], None),
        (chips[:, :4], [0, 0, 1], None),
        (chips, [0, 0], None),
        (chips, [0, 0, 1], ["a"]),
    ):
        with pytest.raises(ValueError, match=r"expected \(n, S, S, 3\)|identities"):
            ArraySource(bad, labels, "arcface-112", names)


def test_a_set_in_memory_keeps_its_names_and_digest(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 4, "b": 3})
    (tmp_path / "a" / "1.jpg").write_bytes(b"broken")
    source = ImageFolder(tmp_path, "arcface-112", 112)
    small = create_backbone("mobilefacenet", width=0.25, input_size=64).preprocessing
    held = in_memory(source, small)
    assert held.labels.tolist() == [0, 0, 0, 1, 1, 1] and held.name(1) == source.name(2)
    assert [Path(f.source).name for f in held.failures] == ["1.jpg"]
    assert held.digest() == source.subset([0, 2, 3, 4, 5, 6]).digest()
    part = held.subset([4, 1])
    assert part.size == 64 and part.name(0) == held.name(4)
    assert part.failures == held.failures == held.subset([0]).subset([0]).failures
    np.testing.assert_array_equal(part.chip(1), held.chip(1))
    with pytest.raises(ImageError, match="1 images cannot be read, more than the limit of 0"):
        in_memory(source, small, max_failures=0)


# --- research data, where there is any ------------------------------------------------------


def test_celeba_chips_warped_for_the_bundled_network(shared_dir: Path) -> None:
    """The same people's chips are nearer to each other through the warp to dlib's template."""
    source = ImageFolder(shared_dir / "data" / "celeba112")
    assert len(source) == 38_089 and source.num_classes == 7_307
    some = source.subset(np.flatnonzero(source.labels < 30))
    backbone = create_backbone("dlib_resnet29").eval()
    loader = make_loader(
        FaceDataset(some, backbone.preprocessing), OrderedSampler(len(some)), batch_size=32
    )
    with torch.no_grad():
        out = torch.cat([backbone(backbone.preprocessing.apply(b.images)) for b in loader])
    unit = torch.nn.functional.normalize(out)
    cosine = (unit @ unit.T)[tuple(np.triu_indices(len(some), 1))].numpy()
    same = (some.labels[:, None] == some.labels)[np.triu_indices(len(some), 1)]
    assert not len(loader.failures)
    assert (cosine[same] > np.quantile(cosine[~same], 0.99)).mean() > 0.6
