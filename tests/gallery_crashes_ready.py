"""For the process from which those that will be killed are forked: see test_gallery_crashes.py."""

from __future__ import annotations

from tests.gallery_crashes import warm_up

warm_up()
