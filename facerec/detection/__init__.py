"""Face detectors behind one protocol: CenterFace, SCRFD and YuNet.

Imports the core, NumPy and OpenCV; insightface only when SCRFD is asked for.
"""

from facerec.detection.base import Detector, NetworkDetector
from facerec.detection.load import load_detector

__all__ = ["Detector", "NetworkDetector", "load_detector"]
