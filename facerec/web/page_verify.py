"""The page that compares two photos. Imports Gradio."""

from __future__ import annotations

from typing import Any

import gradio as gr

from facerec.web import render
from facerec.web.layout import PLACEHOLDER, SOURCES, PhotoInput, limit_of, on, rate_choice
from facerec.web.service import Service
from facerec.web.views import Upload


def add(service: Service) -> None:
    """Add the tab to the Blocks under construction."""
    with gr.Tab("Verify", id="verify"):
        with gr.Row():
            a, b = (
                PhotoInput(
                    label=f"Photo {letter}",
                    type="filepath",
                    sources=SOURCES,
                    placeholder=PLACEHOLDER,
                    webcam_options=gr.WebcamOptions(mirror=False),
                    buttons=[],
                    height=260,
                    min_width=280,
                    elem_id=f"verify-{letter.lower()}",
                )
                for letter in "AB"
            )
        rate = rate_choice(service, "verify")
        button = gr.Button("Compare", variant="primary", elem_id="verify-button")
        result = gr.HTML(elem_id="verify-result")

    def compare(one: Upload | None, other: Upload | None, limit: float) -> dict[Any, Any]:
        found = service.verify(one, other, limit_of(service, limit))
        return {result: render.verification(found)}

    def compare_if_both(one: Upload | None, other: Upload | None, limit: float) -> dict[Any, Any]:
        return {result: ""} if one is None or other is None else compare(one, other, limit)

    inputs = [a, b, rate]
    on(button.click, compare, inputs, [result], problem=result)
    for event in (a.change, b.change, rate.change):
        on(event, compare_if_both, inputs, [result], problem=result)
