"""The page that enrols a person from photos. Imports Gradio."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from facerec.web import render
from facerec.web.layout import CLICKS, SOURCES, PhotosInput, on, state
from facerec.web.service import Service
from facerec.web.views import Draft, Upload


def add(service: Service, head: Any) -> None:
    """Add the tab to the Blocks under construction. head: shows how many people there are."""
    with gr.Tab("Enrol", id="enrol"), gr.Row():
        kept = state(())
        with gr.Column(scale=2, min_width=300):
            name = gr.Textbox(
                label="Name",
                placeholder="Whom do the photos show?",
                info="A name that is there already gets further photos.",
                max_lines=1,
                max_length=200,
                elem_id="enrol-name",
            )
            photos = PhotosInput(
                label="Photos",
                type="filepath",
                sources=SOURCES,
                interactive=True,
                buttons=[],
                columns=3,
                object_fit="cover",
                file_types=["image"],
                elem_id="enrol-photos",
            )
            found = gr.HTML(js_on_load=CLICKS, elem_id="enrol-faces")
            force = gr.Checkbox(
                label="Enrol anyway",
                info="Also what the quality gate refuses.",
                elem_id="enrol-force",
            )
            button = gr.Button("Enrol", variant="primary", elem_id="enrol-button")
        with gr.Column(scale=3, min_width=300):
            outcome = gr.HTML(elem_id="enrol-outcome")

    def look(uploads: list[Upload], before: tuple[Draft, ...]) -> dict[Any, Any]:
        drafts = service.draft(uploads, before)
        shown = {found: render.drafts(drafts), kept: drafts}
        return {**shown, outcome: ""} if drafts else shown  # what was enrolled stays in sight

    def pick(before: tuple[Draft, ...], event: gr.EventData) -> dict[Any, Any]:
        photo, face = int(event._data["photo"]), int(event._data["face"])
        drafts = tuple(
            draft.choose(face) if i == photo else draft for i, draft in enumerate(before)
        )
        return {found: render.drafts(drafts), kept: drafts}

    def enrol(
        who: str, uploads: list[Upload], anyway: bool, before: tuple[Draft, ...]
    ) -> dict[Any, Any]:
        drafts = service.draft(uploads, before)
        result = service.enrol(who, drafts, force=anyway)
        shown = {
            outcome: render.enrolment(result),
            head: render.head(service.about()),
            force: False,
        }
        if any(photo.status in ("rejected", "failed") for photo in result.photos):
            return shown
        if any(len(draft.crops) > 1 for draft in drafts):  # the others in it may be next
            drafts = tuple(replace(d, choice=None) if len(d.crops) > 1 else d for d in drafts)
            return {**shown, name: "", kept: drafts, found: render.drafts(drafts)}
        return {**shown, name: "", photos: None, kept: (), found: ""}

    on(photos.change, look, [photos, kept], [found, kept, outcome], problem=found)
    on(found.click, pick, [kept], [found, kept], problem=outcome, show_progress="hidden")
    inputs = [name, photos, force, kept]
    outputs = [outcome, head, force, name, photos, kept, found]
    on(button.click, enrol, inputs, outputs, problem=outcome)
    on(name.submit, enrol, inputs, outputs, problem=outcome)
