"""What is shown when, and how changed: samplers, augmentation, loader, and taking up again."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from facerec.alignment import TEMPLATES, align, similarity_transform
from facerec.errors import ConfigError, ImageError
from facerec.types import RGBImage

torch = pytest.importorskip("torch")

from training.backbones import Preprocessing  # noqa: E402
from training.data import (  # noqa: E402
    ArraySource,
    Augmentation,
    BalancedSampler,
    Batch,
    ChipTransform,
    Draw,
    FaceDataset,
    FaceSource,
    Loader,
    OrderedSampler,
    Sampler,
    ShuffleSampler,
    make_loader,
)
from training.data.augment import template_warp, warp_chip  # noqa: E402

SIZE = 32
EVERYTHING = Augmentation(crop=0.5, low_resolution=0.5, photometric=0.5, grey=0.2, occlusion=0.5)


def preprocessing(size: int = SIZE, template: str = "arcface-112") -> Preprocessing:
    return Preprocessing(template, size, "RGB", (127.5,) * 3, (1 / 127.5,) * 3)


def smooth(n: int, size: int = SIZE, seed: int = 0) -> RGBImage:
    """n pictures without hard edges, each its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = rng.uniform(0.5, 3, (n, 3, 2))
    phase = rng.uniform(0, 6.28, (n, 3))
    angle = waves[..., 0, None, None] * x + waves[..., 1, None, None] * y
    values = 127 + 90 * np.sin(6.28 * angle + phase[..., None, None])
    return np.rint(values).astype(np.uint8).transpose(0, 2, 3, 1).copy()


def blobs(identities: int = 7, each: int = 5, size: int = SIZE) -> ArraySource:
    chips = smooth(identities * each, size)
    return ArraySource(chips, np.repeat(np.arange(identities), each), "arcface-112")


class Broken(ArraySource):
    """A source some of whose images cannot be read."""

    broken: frozenset[int] = frozenset()

    def chip(self, index: int) -> RGBImage:
        if index in self.broken:
            raise ImageError(f"{self.name(index)}: damaged")
        return super().chip(index)


def broken(indices: set[int]) -> Broken:
    source = blobs()
    made = Broken(source.chips, source.labels, source.template)
    made.broken = frozenset(indices)
    return made


def loader_for(
    source: FaceSource,
    sampler: Sampler | None = None,
    batch_size: int = 4,
    workers: int = 0,
    augmentation: Augmentation | None = EVERYTHING,
    **options: int,
) -> Loader:
    dataset = FaceDataset(source, preprocessing(), augmentation, seed=11)
    return make_loader(
        dataset, sampler or ShuffleSampler(len(source), seed=5), batch_size, workers, **options
    )


def take(loader: Loader, n: int) -> list[Batch]:
    return list(itertools.islice(loader, n))


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a.images, b.images, rtol=0, atol=0)
        torch.testing.assert_close(a.labels, b.labels, rtol=0, atol=0)
        torch.testing.assert_close(a.indices, b.indices, rtol=0, atol=0)


# --- samplers ---------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    world=st.integers(1, 4),
    batch_size=st.integers(1, 9),
    start=st.integers(0, 100),
    blocked=st.booleans(),
)
def test_ranks_share_an_epoch_without_loss_or_repetition(
    size: int, world: int, batch_size: int, start: int, blocked: bool
) -> None:
    blocks = {"blocks": sorted({0, size // 3, size // 2}), "window": 5} if blocked else {}
    steps = 2 * size // (world * batch_size) + 3
    seen: dict[int, list[Draw]] = {}
    for rank in range(world):
        sampler = ShuffleSampler(size, seed=3, rank=rank, world=world, **blocks)
        batches = itertools.islice(sampler.batches(batch_size, start), steps)
        for step, batch in enumerate(batches):
            assert len(batch) == batch_size
            seen.setdefault(step, []).extend(batch)
    stream = [draw for step in sorted(seen) for draw in seen[step]]
    assert stream == ShuffleSampler(size, seed=3, **blocks).draws(start, start + len(stream))
    for visit in {d.visit for d in stream}:
        shown = [d.sample for d in stream if d.visit == visit]
        assert len(set(shown)) == len(shown)
        if (visit * size >= start) and (visit + 1) * size <= start + len(stream):
            assert sorted(shown) == list(range(size))


def test_epochs_are_shuffled_anew_and_by_seed() -> None:
    orders = {
        (seed, epoch): tuple(
            d.sample for d in ShuffleSampler(50, seed=seed).draws(50 * epoch, 50 * epoch + 50)
        )
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(set(orders.values())) == 6
    assert orders[0, 0] != tuple(range(50))


def test_blocks_are_read_mostly_forwards() -> None:
    """Within a window, samples come from few blocks; over epochs, every order occurs."""
    blocks = np.arange(0, 1000, 50)
    sampler = ShuffleSampler(1000, seed=1, blocks=blocks, window=100)
    order = np.array([d.sample for d in sampler.draws(0, 1000)])
    assert sorted(order) == list(range(1000))
    open_blocks = [len(set((order[i : i + 100] // 50).tolist())) for i in range(0, 1000, 100)]
    assert max(open_blocks) <= 6
    free = np.array([d.sample for d in ShuffleSampler(1000, seed=1).draws(0, 1000)])
    assert len(set((free[:100] // 50).tolist())) > 15
    assert [d.sample for d in sampler.draws(1000, 1100)] != order[:100].tolist()


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=8),
    each=st.integers(1, 4),
    people=st.integers(1, 3),
    world=st.integers(1, 3),
)
def test_balanced_batches_hold_p_identities_of_k_images(
    counts: list[int], each: int, people: int, world: int
) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    batch_size = each * people
    turns: Counter[int] = Counter()
    shown: Counter[int] = Counter()
    draws = []
    steps = 6 * len(counts)
    for rank in range(world):
        sampler = BalancedSampler(labels, each, seed=2, rank=rank, world=world)
        for batch in itertools.islice(sampler.batches(batch_size), steps):
            draws += batch
            for group in range(people):
                of = {int(labels[d.sample]) for d in batch[group * each : (group + 1) * each]}
                assert len(of) == 1
                turns.update(of)
    assert max(turns.values()) - min(turns[i] for i in range(len(counts))) <= 1
    assert len(set(draws)) == len(draws)  # visit counts how often an image was drawn before
    shown.update(d.sample for d in draws)
    for identity in range(len(counts)):
        of_images = [shown[i] for i in np.flatnonzero(labels == identity).tolist()]
        assert max(of_images) - min(of_images) <= 1


def test_balanced_draws_do_not_depend_on_where_one_starts() -> None:
    labels = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])
    sampler = BalancedSampler(labels, 4, seed=2)
    whole = sampler.draws(0, 120)
    assert [sampler.draws(i, i + 7) for i in range(0, 112, 7)] == [
        whole[i : i + 7] for i in range(0, 112, 7)
    ]


@given(size=st.integers(1, 30), world=st.integers(1, 5), batch_size=st.integers(1, 7))
def test_evaluation_sees_everything_once_in_order(size: int, world: int, batch_size: int) -> None:
    seen = [
        draw.sample
        for rank in range(world)
        for batch in OrderedSampler(size, rank=rank, world=world).batches(batch_size)
        for draw in batch
    ]
    assert seen == list(range(size))


def test_steps_and_epochs() -> None:
    sampler = ShuffleSampler(100, world=2)
    assert [sampler.steps(e, 8) for e in (1, 2, 0.5)] == [7, 13, 4]
    assert [sampler.epoch(p) for p in (0, 99, 100, 250)] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShuffleSampler(0), "the set is empty"),
        (lambda: ShuffleSampler(5, rank=2, world=2), "rank 2 of a world of 2"),
        (lambda: ShuffleSampler(5, seed=-1), "the seed lies in"),
        (lambda: ShuffleSampler(5, blocks=[1, 3]), "blocks start at 0"),
        (lambda: BalancedSampler([0, 1], 0), "images_per_identity is at least 1"),
        (lambda: next(BalancedSampler([0, 1], 4).batches(6)), "not a multiple of images_per"),
        (lambda: next(ShuffleSampler(5).batches(0)), "batch_size is at least 1"),
    ],
)
def test_what_no_sampler_can_do(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        make()


# --- augmentation -----------------------------------------------------------------------


def transform(augmentation: Augmentation | None, seed: int = 0, size: int = SIZE) -> ChipTransform:
    return ChipTransform(("arcface-112", size), ("arcface-112", size), augmentation, seed)


def test_the_default_is_a_mirror_image_half_of_the_time() -> None:
    [chip] = smooth(1)
    mirrored = 0
    for visit in range(400):
        out = transform(Augmentation())(chip, Draw(3, visit))
        flipped = bool((out != chip).any())
        assert (out == (chip[:, ::-1] if flipped else chip)).all()
        mirrored += flipped
    assert 160 < mirrored < 240


def test_none_changes_nothing() -> None:
    [chip] = smooth(1)
    for how in (None, Augmentation.none()):
        assert (transform(how)(chip, Draw(0, 0)) == chip).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), visit=st.integers(0, 2**20), sample=st.integers(0, 2**35))
def test_pixels_follow_from_seed_visit_and_sample(seed: int, visit: int, sample: int) -> None:
    [chip] = smooth(1)
    before = chip.copy()
    how = Augmentation.model_validate(
        dict.fromkeys(("crop", "low_resolution", "photometric", "occlusion"), 1.0)
    )
    first = transform(how, seed)
    again = pickle.loads(pickle.dumps(first))
    out = first(chip, Draw(sample, visit))
    np.testing.assert_array_equal(out, again(chip, Draw(sample, visit)))
    assert out.shape == chip.shape and out.dtype == np.uint8
    for other in (Draw(sample + 1, visit), Draw(sample, visit + 1)):
        assert (first(chip, other) != out).any()
    assert (transform(how, seed ^ 1)(chip, Draw(sample, visit)) != out).any()
    np.testing.assert_array_equal(chip, before)


def test_switching_one_change_on_leaves_the_others() -> None:
    [chip] = smooth(1)
    for visit in range(50):
        draw = Draw(0, visit)
        plain = transform(Augmentation())(chip, draw)
        occluded = transform(Augmentation(occlusion=0.5))(chip, draw)
        same = (plain == occluded).all(-1).mean()
        assert same >= 0.75  # mirrored or not alike; at most a fifth is covered


def test_a_crop_moves_the_landmarks_as_far_as_it_may_and_no_farther() -> None:
    """A bright dot at each landmark is found again within the largest move there is."""
    size, how = 112, Augmentation(flip=0, crop=1)
    points = TEMPLATES["arcface-112"].scaled_to(size)
    chip = np.zeros((size, size, 3), np.uint8)
    y, x = np.mgrid[:size, :size]
    for px, py in points[:2]:
        chip += (200 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 8)).astype(np.uint8)[..., None]
    moves = []
    for visit in range(60):
        out = transform(how, size=size)(chip, Draw(0, visit))[..., 0].astype(float)
        halves = (np.where(x < size / 2, out, 0), np.where(x >= size / 2, out, 0))
        found = [[(h * x).sum() / h.sum(), (h * y).sum() / h.sum()] for h in halves]
        moves.append(np.array(found) - points[:2])
    moves = np.array(moves)
    shift, reach = 0.05 * size, np.abs(points[:2] - 55.5).max()
    assert np.abs(moves).max() < shift + 0.1 * reach + np.radians(5) * reach * 1.1 + 1
    assert moves[..., 0].std() > 1.5 and moves[..., 1].std() > 1.5
    assert np.abs(moves.mean((0, 1))).max() < 2


def test_brightness_scales_every_pixel_alike() -> None:
    [chip] = smooth(1)
    factors = []
    for visit in range(40):
        how = Augmentation(flip=0, photometric=1, brightness=0.3, contrast=0, saturation=0)
        out = transform(how)(chip, Draw(0, visit)).astype(float)
        dark = (chip > 60) & (chip < 150)
        ratio = out[dark] / chip[dark]
        assert np.ptp(ratio) < 0.03
        factors.append(ratio.mean())
    assert 0.69 < min(factors) < 0.8 and 1.2 < max(factors) < 1.31


def luma(image: np.ndarray) -> np.ndarray:
    return image.astype(float) @ [0.299, 0.587, 0.114]


def test_contrast_keeps_the_mean_and_saturation_every_pixels_grey() -> None:
    chip = (smooth(1)[0] // 3 + 80).astype(np.uint8)  # far from both ends
    changed = 0.0
    for visit in range(20):
        contrast = Augmentation(flip=0, photometric=1, brightness=0, contrast=0.5, saturation=0)
        out = transform(contrast)(chip, Draw(0, visit))
        assert luma(out).mean() == pytest.approx(luma(chip).mean(), abs=0.6)
        changed = max(changed, abs(out.std() / chip.std() - 1))
        saturation = Augmentation(flip=0, photometric=1, brightness=0, contrast=0, saturation=0.5)
        out = transform(saturation)(chip, Draw(0, visit))
        np.testing.assert_allclose(luma(out), luma(chip), atol=1)
    assert changed > 0.3


def test_grey_has_no_colour() -> None:
    [chip] = smooth(1)
    out = transform(Augmentation(flip=0, grey=1))(chip, Draw(0, 0))
    assert (out == out[..., :1]).all()
    np.testing.assert_allclose(out[..., 0], luma(chip), atol=1)


def test_low_resolution_takes_detail_away() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    for visit in range(30):
        out = transform(Augmentation(flip=0, low_resolution=1))(noise, Draw(0, visit))
        assert out.std() < 0.75 * noise.std()
        assert abs(float(out.mean()) - float(noise.mean())) < 6


def test_occlusion_covers_the_area_that_it_should() -> None:
    chip = np.zeros((64, 64, 3), np.uint8)
    how = Augmentation(flip=0, occlusion=1, occlusion_area=(0.05, 0.3))
    shares = []
    for visit in range(200):
        covered = transform(how, size=64)(chip, Draw(0, visit)).any(-1)
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        assert covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.99
        shares.append(covered.mean())
    assert 0.04 < min(shares) < 0.08 and 0.25 < max(shares) < 0.33


@pytest.mark.parametrize(
    "setting",
    [
        {"flip": 1.5},
        {"blur": 0.1},
        {"crop_scale": (1.2, 0.8)},
        {"occlusion_area": (0.0, 0.2)},
        {"low_resolution_side": (0.5, 2.0)},
        {"contrast": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(setting))):
        Augmentation.model_validate(setting)


# --- templates --------------------------------------------------------------------------


def test_the_warp_between_templates_is_the_least_squares_similarity() -> None:
    """Against the linear system solved at large: x' = ax - by + c, y' = bx + ay + d."""
    (x, y), target = TEMPLATES["arcface-112"].scaled_to(112).T, TEMPLATES["dlib-150"].scaled_to(150)
    one, zero = np.ones(5), np.zeros(5)
    rows = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, c, d = np.linalg.lstsq(rows, target.T.ravel(), rcond=None)[0]
    got = template_warp(("arcface-112", 112), ("dlib-150", 150))
    np.testing.assert_allclose(got, [[a, -b, c], [b, a, d]], atol=1e-9)
    assert 1.44 < a < 1.46 and abs(b) < 0.01  # enlarged, and upright


def test_a_warped_chip_is_nearly_the_photos_own(astronaut: RGBImage, pipeline) -> None:  # type: ignore[no-untyped-def]
    """112 to 150 by the fixed warp, against aligning the photo to 150 at once."""
    [found] = pipeline.detector.detect([astronaut])
    [small] = align(astronaut, found.landmarks[:1], "arcface-112", 112)
    [direct] = align(astronaut, found.landmarks[:1], "dlib-150", 150)
    warped = warp_chip(small, template_warp(("arcface-112", 112), ("dlib-150", 150)), 150)
    # The two fits of five points differ a little: look for the best shift.
    inside = slice(25, 120)
    error = min(
        np.abs(
            np.roll(warped, (dy, dx), (0, 1))[inside, inside].astype(float) - direct[inside, inside]
        ).mean()
        for dy, dx in itertools.product(range(-3, 4), repeat=2)
    )
    assert error < 8
    assert np.abs(warped[inside, inside].astype(float) - direct[::-1][inside, inside]).mean() > 25


def test_beyond_the_chip_the_border_repeats() -> None:
    warped = warp_chip(
        np.full((112, 112, 3), 77, np.uint8),
        template_warp(("arcface-112", 112), ("dlib-150", 150)),
        150,
    )
    assert (warped == 77).all()


@pytest.mark.parametrize("target", [56, 28])
def test_shrinking_averages(target: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    small = warp_chip(noise, template_warp(("arcface-112", 112), ("arcface-112", target)), target)
    factor = 112 // target
    blocks = noise.reshape(target, factor, target, factor, 3).mean((1, 3))
    assert small.std() < 0.65 * noise.std()
    # Averages, sampled at most one pixel beside the blocks' middles.
    assert np.corrcoef(small.ravel(), blocks.ravel())[0, 1] > 0.6


def test_templates_keep_their_points() -> None:
    points = TEMPLATES["arcface-112"].scaled_to(64)
    matrix = template_warp(("arcface-112", 112), ("arcface-112", 64))
    source = TEMPLATES["arcface-112"].scaled_to(112)
    np.testing.assert_allclose(source @ matrix[:, :2].T + matrix[:, 2], points, atol=1e-9)
    np.testing.assert_allclose(matrix, similarity_transform(source, points))


# --- dataset and loader -----------------------------------------------------------------


def test_a_dataset_gives_images_and_labels() -> None:
    source = blobs(size=112)
    dataset = FaceDataset(source, preprocessing(150, "dlib-150"))
    image, label = dataset[6]
    assert image.shape == (3, 150, 150) and image.dtype == torch.uint8 and label == 1
    assert len(dataset) == 35
    torch.testing.assert_close(dataset[-1][0], dataset[34][0])
    with pytest.raises(IndexError):
        dataset[35]


def test_batches_are_channels_last_and_ready_for_the_backbone() -> None:
    [batch] = take(loader_for(blobs(), augmentation=None), 1)
    assert batch.images.shape == (4, 3, SIZE, SIZE) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    x = preprocessing().apply(batch.images)
    assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32
    chips = blobs().chips[batch.indices.numpy()].astype(np.float32)
    np.testing.assert_allclose(x.numpy().transpose(0, 2, 3, 1), (chips - 127.5) / 127.5, atol=1e-6)
    assert batch.labels.tolist() == blobs().labels[batch.indices.numpy()].tolist()


def test_workers_change_nothing() -> None:
    expected = take(loader_for(blobs()), 12)
    assert_equal(take(loader_for(blobs(), workers=2), 12), expected)


@pytest.mark.parametrize("stop", [0, 1, 7, 13])
def test_a_saved_position_is_taken_up_exactly(stop: int) -> None:
    expected = take(loader_for(blobs()), 20)
    first = loader_for(blobs())
    assert_equal(take(first, stop), expected[:stop])
    second = loader_for(blobs())
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert second.epoch == stop * 4 // 35
    assert_equal(take(second, 20 - stop), expected[stop:])
    assert_equal(take(first, 20 - stop), expected[stop:])  # and going on, likewise


def test_what_workers_prepared_ahead_is_not_counted() -> None:
    first = loader_for(blobs(), workers=1, prefetch=6)
    take(first, 3)
    assert first.state_dict()["position"] == 12
    second = loader_for(blobs())
    second.load_state_dict(first.state_dict())
    assert_equal(take(second, 4), take(loader_for(blobs()), 7)[3:])


def test_another_world_size_takes_up_the_same_draws() -> None:
    """Two ranks of 4, then one of 8: the global batches are the same."""
    one = take(loader_for(blobs(), batch_size=8), 6)
    two = [
        take(loader_for(blobs(), ShuffleSampler(35, seed=5, rank=rank, world=2)), 6)
        for rank in range(2)
    ]
    for whole, left, right in zip(one, *two, strict=True):
        torch.testing.assert_close(whole.images, torch.cat([left.images, right.images]))
    pair = loader_for(blobs(), ShuffleSampler(35, seed=5, rank=1, world=2))
    take(pair, 4)
    single = loader_for(blobs(), batch_size=8)
    single.load_state_dict(pair.state_dict())
    assert_equal(take(single, 2), one[4:])


def test_other_data_is_not_taken_up() -> None:
    state = loader_for(blobs()).state_dict()
    with pytest.raises(ConfigError, match=r"size was 35, is 40"):
        loader_for(blobs(8)).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"seed was 5, is 6"):
        loader_for(blobs(), ShuffleSampler(35, seed=6)).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"kind was shuffle, is balanced"):
        loader_for(blobs(), BalancedSampler(blobs().labels, 2, seed=5)).load_state_dict(state)


def test_loading_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    take(loader_for(blobs()), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_can_be_repeated() -> None:
    loader = loader_for(blobs(), OrderedSampler(35), batch_size=8, augmentation=None)
    for _ in range(2):
        batches = list(loader)
        assert torch.cat([b.indices for b in batches]).tolist() == list(range(35))
        assert [len(b.labels) for b in batches] == [8, 8, 8, 8, 3]


def test_an_unreadable_image_is_replaced_by_one_of_the_same_person() -> None:
    loader = loader_for(broken({6, 7}), OrderedSampler(35), batch_size=35)
    [batch] = list(loader)
    expected = list(range(35))
    expected[6] = expected[7] = 8
    assert batch.indices.tolist() == expected
    assert batch.labels.tolist() == blobs().labels.tolist()
    assert len(loader.failures) == 2
    assert "image 6: damaged" in str(loader.failures)
    list(loader)
    assert len(loader.failures) == 2  # counted once each


def test_the_last_of_a_person_is_replaced_by_the_first() -> None:
    [batch] = list(loader_for(broken({9}), OrderedSampler(35), batch_size=35))
    assert batch.indices[9] == 5
    [batch] = list(loader_for(broken({5, 6, 7, 8, 9}), OrderedSampler(35), batch_size=35))
    assert batch.indices[5:10].tolist() == [10] * 5  # nothing of the person is left
    assert batch.labels[5:10].tolist() == [2] * 5


def test_too_many_unreadable_images_end_it() -> None:
    loader = loader_for(broken({1, 2, 3}), OrderedSampler(35), max_failures=2)
    with pytest.raises(ImageError, match="3 images cannot be read, more than the limit of 2: "):
        list(loader)
    with pytest.raises(ImageError, match="32 images in a row cannot be read; the first: "):
        next(iter(loader_for(broken(set(range(35))))))


def test_failures_come_back_from_workers() -> None:
    loader = loader_for(broken({0}), OrderedSampler(35), workers=1)
    list(loader)
    assert len(loader.failures) == 1


def test_a_sampler_for_another_set() -> None:
    with pytest.raises(ConfigError, match="the sampler is for 10 images, the set has 35"):
        loader_for(blobs(), ShuffleSampler(10))
