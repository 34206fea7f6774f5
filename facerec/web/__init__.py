"""The web UI: pages in the browser over one gallery. A composition root.

``service`` does what a page asks for and answers in the plain values of ``views``;
``render`` makes HTML of those; ``layout`` and the ``page_`` modules arrange them with
Gradio; ``guard`` checks requests; ``server`` binds and runs. Importing this package
imports neither Gradio nor a model library.
"""

from facerec.web.server import serve

__all__ = ["serve"]
