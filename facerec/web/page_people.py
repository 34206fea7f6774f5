"""The page of everybody enrolled: find, look at, rename, merge, remove. Imports Gradio."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from facerec.web import render
from facerec.web.layout import CLICKS, on, state
from facerec.web.service import Service


def add(service: Service, head: Any) -> None:
    """Add the tab to the Blocks under construction. head: shows how many people there are."""
    _PeoplePage(service, head)


class _PeoplePage:
    """The list, and one person in its place; components are attributes, handlers methods."""

    def __init__(self, service: Service, head: Any) -> None:
        self._service = service
        self._head = head
        with gr.Tab("People", id="people") as self._tab:
            self._notice = gr.HTML(elem_id="people-notice")
            with gr.Column() as self._list:
                self._search = gr.Textbox(
                    label="Search",
                    placeholder="Part of a name",
                    max_lines=1,
                    elem_id="people-search",
                )
                self._rows = gr.HTML(js_on_load=CLICKS, elem_id="people-rows")
            with gr.Column(visible=False) as self._detail:
                self._build_detail()
            self._offset = state(0)
            self._person = state(None)
            self._pending = state(None)
        self._connect()

    def _build_detail(self) -> None:
        self._back = gr.Button("← All people", size="sm", elem_id="people-back")
        self._card = gr.HTML(js_on_load=CLICKS, elem_id="people-card")
        with gr.Row(elem_classes="fr-actions"):
            self._name = gr.Textbox(label="New name", max_lines=1, elem_id="people-name")
            self._rename = gr.Button("Rename", scale=0, min_width=150, elem_id="people-rename")
        with gr.Row(elem_classes="fr-actions"):
            self._into = gr.Dropdown(
                label="The same person as",
                allow_custom_value=True,
                elem_id="people-into",
            )
            self._merge = gr.Button("Merge…", scale=0, min_width=150, elem_id="people-merge")
        self._remove = gr.Button("Remove this person…", variant="stop", elem_id="people-remove")
        with gr.Column(visible=False, elem_id="people-confirm") as self._confirm:
            self._question = gr.HTML(elem_id="people-question")
            with gr.Row():
                self._yes = gr.Button("Yes", variant="stop", elem_id="people-yes")
                self._no = gr.Button("Cancel", elem_id="people-no")

    def _connect(self) -> None:
        listing = [self._rows, self._offset, self._notice]
        every = [
            *listing,
            self._list,
            self._detail,
            self._card,
            self._name,
            self._into,
            self._person,
            self._pending,
            self._confirm,
            self._question,
            self._yes,
            self._head,
        ]
        problem = {"problem": self._notice}
        quiet = {**problem, "show_progress": "hidden"}
        on(self._tab.select, self._refresh, [self._search, self._offset], every, **quiet)
        on(
            self._search.change,
            self._find,
            [self._search],
            listing,
            trigger_mode="always_last",
            **quiet,
        )
        on(self._rows.click, self._pick, [self._search], every, **problem)
        on(self._back.click, self._refresh, [self._search, self._offset], every, **problem)
        on(self._card.click, self._photo, [self._person], every, **problem)
        for event in (self._rename.click, self._name.submit):
            on(event, self._give_name, [self._person, self._name], every, **problem)
        on(self._merge.click, self._ask_merge, [self._person, self._into], every, **problem)
        on(self._remove.click, self._ask_remove, [self._person], every, **problem)
        on(self._no.click, self._cancel, [], every, **quiet)
        on(self._yes.click, self._do, [self._pending, self._search, self._offset], every, **problem)

    # The list

    def _find(self, search: str, offset: int = 0) -> dict[Any, Any]:
        page = self._service.people(search, offset)
        return {self._rows: render.people(page), self._offset: page.offset, self._notice: ""}

    def _refresh(self, search: str, offset: int) -> dict[Any, Any]:
        return {
            **self._find(search, offset),
            **self._cancel(),
            self._list: gr.Column(visible=True),
            self._detail: gr.Column(visible=False),
            self._person: None,
            self._card: "",
            self._head: render.head(self._service.about()),
        }

    def _pick(self, search: str, event: gr.EventData) -> dict[Any, Any]:
        clicked = event._data
        if "offset" in clicked:
            return self._find(search, int(clicked["offset"]))
        return {**self._show(int(clicked["person"])), self._notice: ""}

    # One person

    def _show(self, person_id: int, doubtful: int | None = None) -> dict[Any, Any]:
        person = self._service.person(person_id)
        others = [name for name in self._service.names() if name != person.name]
        return {
            **self._cancel(),
            self._list: gr.Column(visible=False),
            self._detail: gr.Column(visible=True),
            self._card: render.person(person, doubtful),
            self._name: person.name,
            self._into: gr.Dropdown(choices=others, value=None),
            self._person: person.id,
        }

    def _photo(self, person_id: int, event: gr.EventData) -> dict[Any, Any]:
        clicked = event._data
        if "ask" in clicked:
            return {**self._show(person_id, int(clicked["ask"])), self._notice: ""}
        said = ""
        if "remove" in clicked:
            removal = self._service.remove_template(person_id, int(clicked["remove"]))
            said = render.notice("good", "The photo was removed." + _late(removal.problem))
        return {
            **self._show(person_id),
            self._notice: said,
            self._head: render.head(self._service.about()),
        }

    def _give_name(self, person_id: int, new: str) -> dict[Any, Any]:
        name = self._service.rename(person_id, new)
        said = render.notice("good", f"The name is now {name}.")
        return {**self._show(person_id), self._notice: said}

    # What cannot be undone: asked first, done after a yes

    def _ask_remove(self, person_id: int) -> dict[Any, Any]:
        person = self._service.person(person_id)
        photos = render.count(len(person.templates), "photo")
        return self._ask(
            ("remove", person_id, ""),
            f"Remove {person.name} and {photos} from the gallery? This cannot be undone.",
            f"Yes, remove {person.name}",
        )

    def _ask_merge(self, person_id: int, into: str | None) -> dict[Any, Any]:
        gone, kept = self._service.merge_plan(person_id, into or "")
        return self._ask(
            ("merge", person_id, kept),
            f"Give all photos of {gone} to {kept}, and drop the name {gone}? "
            "This cannot be undone.",
            f"Yes, merge into {kept}",
        )

    def _ask(self, pending: tuple[str, int, str], question: str, yes: str) -> dict[Any, Any]:
        return {
            self._pending: pending,
            self._confirm: gr.Column(visible=True),
            self._question: f"<p>{escape(question)}</p>",
            self._yes: gr.Button(yes),
            self._notice: "",
        }

    def _cancel(self) -> dict[Any, Any]:
        return {self._pending: None, self._confirm: gr.Column(visible=False)}

    def _do(self, pending: tuple[str, int, str] | None, search: str, offset: int) -> dict[Any, Any]:
        if pending is None:
            return self._cancel()
        action, person_id, into = pending
        if action == "merge":
            kept = self._service.merge(person_id, into)
            said = f"Merged into {into}."
            shown = {**self._show(kept), self._head: render.head(self._service.about())}
        else:
            removal = self._service.remove(person_id)
            photos = render.count(removal.templates, "photo")
            said = f"{removal.identity.name} and {photos} were removed." + _late(removal.problem)
            shown = self._refresh(search, offset)
        return {**shown, self._notice: render.notice("good", said)}


def _late(problem: str | None) -> str:
    if problem is None:
        return ""
    return f" The deleted bytes are still in the database file for now: {problem}"
