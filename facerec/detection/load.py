"""The detector that a pack names."""

from __future__ import annotations

from facerec.detection.base import Detector
from facerec.errors import ModelError
from facerec.packs.manifest import Pack
from facerec.runtime import Network, Workers


def load_detector(pack: Pack, device: str, threads: int, workers: Workers) -> Detector:
    """The pack's detector on ``device`` ("cpu" or "cuda"), with ``threads`` threads.

    Raises ModelError where the file is missing, does not load or is of another kind.
    """
    spec = pack.manifest.detector
    network = Network(pack.detector_path, device, threads)
    if spec.kind == "centerface":
        from facerec.detection.centerface import CenterFace

        _expect_outputs(network, 4)
        return CenterFace(spec, network, workers)
    if spec.kind == "yunet":
        from facerec.detection.yunet import YuNet

        _expect_outputs(network, 12)
        return YuNet(spec, network, workers)
    from facerec.detection.scrfd import Scrfd

    return Scrfd(spec, network, workers)


def _expect_outputs(network: Network, count: int) -> None:
    if len(network.output_names) != count:
        raise ModelError(
            f"{network.path}: expected {count} outputs, got {len(network.output_names)}; "
            "is 'kind' in pack.toml right?"
        )
