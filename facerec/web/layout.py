"""The frame of the UI: theme, style, and what the pages share. Imports Gradio.

Only ``server`` imports this module, and late.
"""

from __future__ import annotations

import functools
from abc import ABCMeta
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from facerec.web import render
from facerec.web.service import Service, sentence
from facerec.web.style import CSS, FAVICON, HEAD
from facerec.web.views import Limit, Upload

__all__ = ["CSS", "FAVICON", "HEAD", "build_pages", "theme"]

UPLOADS_KEPT_S = 600
"""Then an uploaded photo is deleted from the server."""
CLEAN_EVERY_S = 60
_STATE_KEPT_S = 3600
_QUEUE_LENGTH = 64
_AT_ONCE = 2
"""Calls of one handler that run at one time; further ones wait their turn."""

CLICKS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button && Object.keys(button.dataset).length) trigger('click', {...button.dataset});
});
"""

Handler = Callable[..., dict[Any, Any]]
"""Takes the values of its inputs; returns the outputs that change."""


def build_pages(service: Service) -> Any:
    """The Gradio application over ``service``."""
    from facerec.web import page_enrol, page_identify, page_people, page_unknown, page_verify

    with _Pages(
        title="facerec",
        analytics_enabled=False,
        delete_cache=(CLEAN_EVERY_S, UPLOADS_KEPT_S),
    ) as pages:
        head = gr.HTML(padding=False)
        with gr.Tabs():
            page_identify.add(service)
            page_enrol.add(service, head)
            page_verify.add(service)
            page_people.add(service, head)
            page_unknown.add(service, head)
        foot = gr.HTML(padding=False)

        def load() -> dict[Any, Any]:
            about = service.about()
            return {head: render.head(about), foot: render.foot(about)}

        on(pages.load, load, [], [head, foot], problem=head)
    pages.has_launched = True  # else Gradio, when mounted, does not check files at all
    pages.queue(api_open=False, max_size=_QUEUE_LENGTH, default_concurrency_limit=_AT_ONCE)
    return pages


class _Pages(gr.Blocks):  # type: ignore[misc,unused-ignore]
    """Blocks that touch no file but uploaded ones.

    A request may name any path or address where a photo is meant. Gradio would read the one,
    and fetch the other, for any component, before it looks whether that may be.
    """

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> Any:
        uploads = Path(get_upload_folder()).resolve()
        for path in _paths_in(inputs):
            if "://" in path or not Path(path).resolve().is_relative_to(uploads):
                raise gr.Error(
                    "Only photos that were uploaded here can be used.", print_exception=False
                )
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


def _paths_in(value: Any) -> Iterator[str]:
    """Every "path" in nested lists and dictionaries, as they come from JSON."""
    if isinstance(value, dict):
        if "path" in value:
            yield str(value["path"])
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _paths_in(item)


def on(
    event: Callable[..., Any],
    handler: Handler,
    inputs: list[Any],
    outputs: list[Any],
    *,
    problem: Any,
    **options: Any,
) -> None:
    """Call ``handler`` on ``event``. The border: what it raises becomes a sentence in ``problem``.

    No handler is part of a public API. options: of Gradio's event.
    """

    @functools.wraps(handler)
    def safe(*values: Any) -> dict[Any, Any]:
        try:
            return handler(*values)
        except Exception as exc:
            return {problem: render.notice("error", sentence(exc))}

    options = {"show_progress": "minimal", "show_progress_on": problem, **options}
    event(safe, inputs, outputs, api_visibility="private", **options)


def state(value: Any = None) -> Any:
    """What one visitor's page remembers; forgotten an hour after its last use."""
    return gr.State(value, time_to_live=_STATE_KEPT_S)


def rate_choice(service: Service, name: str) -> Any:
    """The choice of a target false-match rate; of a cosine where no rate was measured."""
    if not service.rates:
        return gr.Slider(
            -1.0,
            1.0,
            value=0.5,
            step=0.01,
            label="Similarity threshold",
            info="This pack's false-match rates are not measured yet, so choose a cosine.",
            elem_id=f"{name}-rate",
        )
    return gr.Dropdown(
        [(f"1 in {1 / fmr:,.0f} comparisons", fmr) for fmr in service.rates],
        value=service.fmr,
        label="Accept a false match in",
        filterable=False,
        elem_id=f"{name}-rate",
    )


def limit_of(service: Service, value: float) -> Limit:
    """What :func:`rate_choice` stands at."""
    return Limit(fmr=float(value)) if service.rates else Limit(threshold=float(value))


def theme() -> Any:
    """System fonts, so that nothing is fetched, and quiet colours."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        body_text_color_subdued="*neutral_500",
        button_primary_background_fill="#0072b2",
        button_primary_background_fill_dark="#0072b2",
        button_primary_background_fill_hover="#005a8e",
        button_primary_background_fill_hover_dark="#005a8e",
        button_primary_text_color="white",
        button_cancel_background_fill="#b64a00",
        button_cancel_background_fill_dark="#b64a00",
        button_cancel_background_fill_hover="#943c00",
        button_cancel_background_fill_hover_dark="#943c00",
        button_cancel_text_color="white",
    )


def _upload(file: Any) -> Upload:
    return Upload(file.orig_name or Path(file.path).name, file.path)


def _photo(self: Any, payload: Any) -> Upload | None:
    return None if payload is None or not payload.path else _upload(payload)


def _photos(self: Any, payload: Any) -> list[Upload]:
    files = [] if payload is None else [getattr(e, "image", None) for e in payload.root]
    return [_upload(file) for file in files if file is not None and file.path]


def _input_class(name: str, base: Any, preprocess: Callable[..., Any]) -> Any:
    """A component like ``base`` that hands on the uploaded file as it is.

    Gradio would decode it first, and what it cannot decode would end in no more than "Error".
    Its metaclass would also write a .pyi beside this file, so its ``__new__`` is passed by.
    """
    attributes = {"is_template": True, "preprocess": preprocess, "__module__": __name__}
    return ABCMeta.__new__(type(base), name, (base,), attributes)


PhotoInput: Any = _input_class("PhotoInput", gr.Image, _photo)
"""One photo, as :class:`Upload` or None."""
PhotosInput: Any = _input_class("PhotosInput", gr.Gallery, _photos)
"""Several photos, as a list of :class:`Upload`."""
SOURCES = ["upload", "webcam", "clipboard"]
PLACEHOLDER = "# Choose a photo\nor drop one here; the camera is below"
