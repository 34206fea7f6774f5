"""Grouping unknown faces: how right, against other algorithms, and how long it takes.

    python benchmarks/clustering.py --lfw lfw --faces celeba112 --work bench-clustering
    python benchmarks/clustering.py --lfw lfw --faces celeba112 --work bench-clustering --compare

LFW's photos are embedded from the raw files, with the bundled pack; ``--faces`` is a folder a
person with 112x112 crops aligned as ArcFace's: ``--count`` of them are taken, whole people drawn
from a fixed seed, and all of them. Embeddings stay in --work. Prints pairwise and BCubed
precision, recall and F at the threshold that ``facerec cluster`` chooses and at others, and the
time that a gallery of ``--scale`` unnamed faces (5 each of people drawn around LFW's) takes to be
grouped. --compare: other libraries' algorithms on the same neighbours, each at the threshold, of
those in the table, that suits it best on the set at hand, which favours them; needs scikit-learn
and scikit-network. Seconds of a row are those after the neighbours are found.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gallery import Crowd  # noqa: E402 - after the path
from facerec.clustering_metrics import bcubed, pairwise  # noqa: E402
from facerec.packs import find_pack  # noqa: E402
from facerec.pipeline import Pipeline  # noqa: E402
from gallery import Gallery, NewTemplate  # noqa: E402
from gallery.clustering import Pairs, average_linkage, linking_point  # noqa: E402

RATES = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
EACH = 5
NEIGHBOURS = 64
MOST_FOR_SCIPY = 12_000
COLUMNS = "{:8} {:36} {:>8}  {:>5} {:>5} {:>5}   {:>5} {:>5} {:>5}  {:>6} {:>6} {:>6}"


@dataclass(frozen=True)
class FaceSet:
    """rows: (n, d) float32 unit. labels: (n,) int64."""

    name: str
    rows: np.ndarray
    labels: np.ndarray


# Embeddings


def lfw_set(folder: Path, work: Path) -> FaceSet:
    """All photos of LFW's View 2; the face nearest the centre of each."""
    from facerec.lfw import PAIRS_FILE, embed_central_faces, find_photos, read_protocol

    protocol = read_protocol(folder / PAIRS_FILE)
    cache = work / "lfw.npy"
    if not cache.exists():
        pipeline = Pipeline.load(find_pack("bundled"), device="cpu")
        rows, found = embed_central_faces(
            pipeline, find_photos(protocol, folder), progress=_progress("LFW")
        )
        if not found.all():
            raise SystemExit(f"{np.count_nonzero(~found)} photos of {folder} have no face")
        np.save(cache, rows)
    return FaceSet("LFW", np.load(cache), protocol.labels)


def crop_set(folder: Path, work: Path) -> FaceSet:
    """Every crop of a folder a person, warped from ArcFace's template to the pack's."""
    import cv2

    from facerec.alignment import find_template, similarity_transform
    from facerec.image import load_image

    paths = sorted(folder.glob("*/*.jpg"))
    names = np.array([path.parent.name for path in paths])
    labels = np.unique(names, return_inverse=True)[1].astype(np.int64)
    cache = work / "crops.npy"
    if not cache.exists():
        pipeline = Pipeline.load(find_pack("bundled"), device="cpu")
        size = pipeline.contract.input_size
        warp = similarity_transform(
            find_template("arcface-112").scaled_to(112),
            find_template(pipeline.contract.template).scaled_to(size),
        )
        tell, parts = _progress("crops"), []
        for start in range(0, len(paths), 256):
            chips = [
                cv2.warpAffine(
                    load_image(path), warp, (size, size), borderMode=cv2.BORDER_REPLICATE
                )
                for path in paths[start : start + 256]
            ]
            parts.append(pipeline.embedder.embed(np.stack(chips)))
            tell(start + len(chips), len(paths))
        np.save(cache, np.concatenate(parts))
    return FaceSet("CelebA", np.load(cache), labels)


def some_people(faces: FaceSet, count: int) -> FaceSet:
    """The photos of whole people, drawn from a fixed seed, until there are ``count`` of them."""
    place = np.random.default_rng(0).permutation(int(faces.labels.max()) + 1)[faces.labels]
    chosen = np.argsort(place, kind="stable")[:count]
    return FaceSet(f"{faces.name} {count}", faces.rows[chosen], faces.labels[chosen])


def _progress(what: str) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        print(f"\r{what} {done:,} of {total:,}", end=end, file=sys.stderr, flush=True)

    return tell


# Ours, and others'


class Neighbours:
    """The nearest of each face, once for all algorithms and thresholds."""

    def __init__(self, faces: FaceSet) -> None:
        import faiss

        began = time.perf_counter()
        index = faiss.IndexFlatIP(faces.rows.shape[1])
        index.add(faces.rows)
        self.similarities, self.rows = index.search(faces.rows, NEIGHBOURS + 1)
        self.seconds = time.perf_counter() - began

    def links(self, threshold: float) -> Pairs:
        """As gallery.clustering.find_links finds them."""
        near, to = np.nonzero(self.similarities >= threshold)
        return Pairs.of(near, self.rows[near, to])

    def graph(self, least: float, weight: Callable[[Any], Any] = np.ones_like) -> sp.csr_matrix:
        """(n, n) symmetric, of pairs from ``least`` on."""
        n, k = self.rows.shape
        near, to = np.repeat(np.arange(n), k), self.rows.ravel()
        similarity = self.similarities.ravel()
        use = (similarity >= least) & (near != to)
        one_way = sp.csr_matrix((weight(similarity[use]), (near[use], to[use])), shape=(n, n))
        return one_way.maximum(one_way.T).tocsr()


def others(faces: FaceSet, near: Neighbours) -> dict[str, Callable[[float], np.ndarray]]:
    """Name -> labels at a cosine threshold."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial.distance import squareform
    from sklearn.cluster import DBSCAN
    from sknetwork.clustering import Leiden, Louvain, PropagationClustering

    n = len(faces.rows)

    def distances(least: float) -> sp.csr_matrix:
        found = near.graph(least, lambda s: s)
        found.data = np.maximum(1 - found.data, 1e-6)
        return found

    def dbscan(threshold: float, least: int) -> np.ndarray:
        model = DBSCAN(eps=1 - threshold, min_samples=least, metric="precomputed")
        return model.fit(distances(threshold)).labels_

    def constant_potts(threshold: float) -> np.ndarray:
        floor = 2 * threshold - 1
        graph = near.graph(floor, lambda s: s - floor).astype(float)
        model = Leiden((threshold - floor) * n * n / graph.sum(), "potts", random_state=0)
        return model.fit_predict(graph)

    found: dict[str, Callable[[float], np.ndarray]] = {
        "connected components (SciPy)": lambda t: connected_components(
            near.graph(t), directed=False
        )[1],
        "DBSCAN, 2 (scikit-learn)": lambda t: dbscan(t, 2),
        "DBSCAN, 4 (scikit-learn)": lambda t: dbscan(t, 4),
        "label propagation (scikit-network)": lambda t: PropagationClustering().fit_predict(
            near.graph(t)
        ),
        "Louvain, modularity (scikit-network)": lambda t: Louvain(random_state=0).fit_predict(
            near.graph(t)
        ),
        "Leiden, constant Potts (scikit-net.)": constant_potts,
    }
    if n <= MOST_FOR_SCIPY:
        similarity = faces.rows.astype(np.float64) @ faces.rows.T
        np.fill_diagonal(similarity, 1)
        condensed = squareform(1 - similarity, checks=False)
        for kind in ("average", "complete"):
            tree = linkage(condensed, kind)
            found[f"{kind} linkage, all pairs (SciPy)"] = lambda t, tree=tree: fcluster(
                tree, 1 - t, "distance"
            )
    return found


def hdbscan(near: Neighbours) -> np.ndarray:
    """It has no threshold. Raises ValueError where the neighbours fall into several parts."""
    from sklearn.cluster import HDBSCAN

    graph = near.graph(-1, lambda s: s)
    graph.data = np.maximum(1 - graph.data, 1e-6)
    return HDBSCAN(min_cluster_size=2, metric="precomputed", copy=True).fit(graph).labels_


# Figures


def figures(faces: FaceSet, what: str, fmr: float, find: Callable[[], np.ndarray]) -> dict:
    began = time.perf_counter()
    labels = np.array(find())
    took = time.perf_counter() - began
    noise = labels < 0  # of DBSCAN's kind: each stands alone
    labels[noise] = labels.max() + 1 + np.arange(np.count_nonzero(noise))
    labels = np.unique(labels, return_inverse=True)[1]
    result: dict[str, Any] = {"set": faces.name, "what": what, "fmr": fmr, "seconds": took}
    for name, measure in (("pairwise", pairwise), ("bcubed", bcubed)):
        score = measure(faces.labels, labels)
        result[name] = {"precision": score.precision, "recall": score.recall, "f": score.f}
    sizes = np.bincount(labels)
    return result | {"groups": len(sizes), "largest": int(sizes.max())}


def print_row(row: dict) -> None:
    scores = [f"{row[m][k]:.3f}" for m in ("pairwise", "bcubed") for k in row[m]]
    rate = "" if np.isnan(row["fmr"]) else f"{row['fmr']:.1e}"
    print(
        COLUMNS.format(
            row["set"], row["what"], rate, *scores, row["groups"], row["largest"],
            f"{row['seconds']:.1f}",
        ),
        flush=True,
    )  # fmt: skip


def measured(faces: FaceSet, *, compare: bool) -> Iterator[dict]:
    table = Pipeline.load(find_pack("bundled"), device="cpu").thresholds
    assert table is not None
    near = Neighbours(faces)
    print(f"{faces.name}: neighbours of {len(faces.rows):,} faces in {near.seconds:.1f} s")

    def ours(threshold: float) -> np.ndarray:
        return average_linkage(faces.rows, near.links(threshold), threshold)

    point = linking_point(table, len(faces.rows), pack_name="bundled")
    yield figures(faces, "facerec, 1/faces", point.fmr, partial(ours, point.threshold))
    for fmr in RATES:
        yield figures(faces, "facerec", fmr, partial(ours, table.cosine_at(fmr)))
    if not compare:
        return
    for name, labels_at in others(faces, near).items():
        rows = []
        for fmr in RATES:
            find = partial(labels_at, table.cosine_at(fmr))
            rows.append(figures(faces, name, fmr, find))
        yield max(rows, key=lambda row: row["pairwise"]["f"] + row["bcubed"]["f"])
    try:
        yield figures(faces, "HDBSCAN (scikit-learn)", float("nan"), lambda: hdbscan(near))
    except ValueError as exc:
        print(f"HDBSCAN on {faces.name}: {str(exc).splitlines()[0]}")


def scale(lfw: FaceSet, faces: int, work: Path) -> dict:
    """A gallery of so many unnamed faces, filled, grouped, and grouped again with 1 % more."""
    from gallery.grouping import group_unknown

    pack = find_pack("bundled")
    order = np.argsort(lfw.labels, kind="stable")
    crowd = Crowd(lfw.rows[order], lfw.labels[order], pack.contract.dim)
    people = faces // EACH
    centres = crowd.centres(np.random.default_rng(2), people)
    rng = np.random.default_rng(4)
    folder = work / f"scale-{faces}"
    result: dict[str, Any] = {"faces": people * EACH, "people": people}
    if folder.exists():
        raise SystemExit(f"{folder}: is there already; remove it, and run this again")
    with Gallery.open(
        folder, contract=pack.contract, thresholds=pack.thresholds, pack_name=pack.name
    ) as gallery:
        whose: dict[int, int] = {}

        def add(rows: np.ndarray, labels: np.ndarray, first: int) -> None:
            for at in range(0, len(rows), 5000):
                with gallery.writing() as change:
                    some = range(at, min(len(rows), at + 5000))
                    ids = change.add_unnamed(len(some))
                    new = [
                        NewTemplate(rows[i], f"{first + i}", f"{first + i:064x}", 0.9) for i in some
                    ]
                    added = change.add_templates(list(zip(ids, new, strict=True)))
                    whose.update(zip(added, labels[some.start : some.stop].tolist(), strict=True))

        for view in range(EACH):
            add(crowd.views(rng, centres), np.arange(people), view * people)
        tell, busy = _Stages(), time.process_time()
        report = group_unknown(gallery, progress=tell)
        result |= {"seconds": report.seconds, "stages": tell.stages(), "fmr": report.fmr}
        result["processor_seconds"] = time.process_time() - busy
        result |= {"joined": report.joined, "groups": report.groups}
        with gallery.reading() as view_of_store:
            batches = list(view_of_store.vectors_since(0, named=False))
        ids = np.concatenate([batch.ids for batch in batches])
        found = np.concatenate([batch.owners for batch in batches])
        true = np.array([whose[i] for i in ids.tolist()])
        for name, measure in (("pairwise", pairwise), ("bcubed", bcubed)):
            score = measure(true, found)
            result[name] = {"precision": score.precision, "recall": score.recall, "f": score.f}
        few = rng.integers(0, people, len(ids) // 100)
        add(crowd.views(rng, centres[few]), few, EACH * people)
        again = group_unknown(gallery)
        result["again"] = {"new": len(few), "joined": again.joined, "seconds": again.seconds}
    return result


class _Stages:
    """Seconds until each stage of a run was done."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._last: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        self._last[what] = time.perf_counter() - self._began

    def stages(self) -> dict[str, float]:
        return {f"{what} done": round(seconds, 1) for what, seconds in self._last.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lfw", type=Path, required=True)
    parser.add_argument("--faces", type=Path, help="a folder a person, with 112x112 crops")
    parser.add_argument("--work", type=Path, default=Path("bench-clustering"))
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--scale", type=int, default=100_000, help="0: leave that out")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    args.work.mkdir(parents=True, exist_ok=True)
    lfw = lfw_set(args.lfw, args.work)
    sets = [lfw]
    if args.faces:
        crops = crop_set(args.faces, args.work)
        sets += [some_people(crops, args.count), crops]
    columns = ("set", "what", "FMR", *("prec", "rec", "F") * 2, "groups", "most", "s")
    print(" " * 55 + "pairwise              BCubed")
    print(COLUMNS.format(*columns))
    results: dict[str, Any] = {"sets": []}
    for faces in sets:
        for row in measured(faces, compare=args.compare and len(faces.rows) <= MOST_FOR_SCIPY):
            print_row(row)
            results["sets"].append(row)
    if args.scale:
        results["scale"] = scale(lfw, args.scale, args.work)
        print(json.dumps(results["scale"], indent=2))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
