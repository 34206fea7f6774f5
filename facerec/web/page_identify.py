"""The page that says who is in a photo. Imports Gradio."""

from __future__ import annotations

from typing import Any

import gradio as gr

from facerec.web import render
from facerec.web.layout import PLACEHOLDER, SOURCES, PhotoInput, limit_of, on, rate_choice
from facerec.web.service import Service
from facerec.web.views import Upload


def add(service: Service) -> None:
    """Add the tab to the Blocks under construction."""
    with gr.Tab("Identify", id="identify"), gr.Row():
        with gr.Column(scale=2, min_width=300):
            photo = PhotoInput(
                label="Photo",
                type="filepath",
                sources=SOURCES,
                placeholder=PLACEHOLDER,
                webcam_options=gr.WebcamOptions(mirror=False),
                buttons=[],
                height=260,
                elem_id="identify-photo",
            )
            rate = rate_choice(service, "identify")
            button = gr.Button("Identify", variant="primary", elem_id="identify-button")
        with gr.Column(scale=3, min_width=300):
            result = gr.HTML(elem_id="identify-result")

    def search(upload: Upload | None, limit: float) -> dict[Any, Any]:
        found = service.identify(upload, limit_of(service, limit))
        return {result: render.identification(found)}

    def search_if_any(upload: Upload | None, limit: float) -> dict[Any, Any]:
        return {result: ""} if upload is None else search(upload, limit)

    on(button.click, search, [photo, rate], [result], problem=result)
    on(photo.change, search_if_any, [photo, rate], [result], problem=result)
    on(rate.change, search_if_any, [photo, rate], [result], problem=result)
