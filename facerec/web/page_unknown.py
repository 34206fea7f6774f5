"""The page of those whom nobody has named: group them, say who they are. Imports Gradio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from facerec.web import render
from facerec.web.layout import CLICKS, on, state
from facerec.web.service import Service


def add(service: Service, head: Any) -> None:
    """Add the tab to the Blocks under construction. head: shows how many people there are."""
    _UnknownPage(service, head)


class _UnknownPage:
    """The list, and one group in its place; components are attributes, handlers methods."""

    def __init__(self, service: Service, head: Any) -> None:
        self._service = service
        self._unknown = service.unknown
        self._head = head
        with gr.Tab("Unknown", id="unknown") as self._tab:
            self._notice = gr.HTML(elem_id="unknown-notice")
            with gr.Column() as self._list:
                self._run = gr.Button("Group the faces", elem_id="unknown-run")
                self._rows = gr.HTML(js_on_load=CLICKS, elem_id="unknown-rows")
            with gr.Column(visible=False) as self._detail:
                self._build_detail()
            self._offset = state(0)
            self._group = state(None)
            self._suggested = state(None)
        self._connect()

    def _build_detail(self) -> None:
        self._back = gr.Button("← All groups", size="sm", elem_id="unknown-back")
        self._card = gr.HTML(js_on_load=CLICKS, elem_id="unknown-card")
        with gr.Row(elem_classes="fr-actions"):
            self._name = gr.Textbox(label="Who is it?", max_lines=1, elem_id="unknown-name")
            self._give = gr.Button("Name", scale=0, min_width=150, elem_id="unknown-give")
        with gr.Row(elem_classes="fr-actions"):
            self._other = gr.Dropdown(label="The same person as", elem_id="unknown-other")
            self._merge = gr.Button("Merge", scale=0, min_width=150, elem_id="unknown-merge")
        with gr.Row():
            self._refuse = gr.Button("Not this person", elem_id="unknown-refuse")
            self._dismiss = gr.Button("Do not show this group", elem_id="unknown-dismiss")

    def _connect(self) -> None:
        every = [
            self._notice,
            self._rows,
            self._offset,
            self._list,
            self._detail,
            self._card,
            self._name,
            self._other,
            self._refuse,
            self._group,
            self._suggested,
            self._head,
        ]
        problem = {"problem": self._notice}
        offset, group = [self._offset], [self._group]
        on(self._tab.select, self._refresh, offset, every, show_progress="hidden", **problem)
        on(self._back.click, self._refresh, offset, every, **problem)
        on(self._run.click, self._group_all, [], every, **problem)
        on(self._rows.click, self._pick, [], every, **problem)
        on(self._card.click, self._split, group, every, **problem)
        for event in (self._give.click, self._name.submit):
            on(event, self._give_name, [*group, self._name, *offset], every, **problem)
        on(self._merge.click, self._join, [*group, self._other], every, **problem)
        on(self._refuse.click, self._not_them, [*group, self._suggested], every, **problem)
        on(self._dismiss.click, self._hide, [*group, *offset], every, **problem)

    # The list

    def _refresh(self, offset: int) -> dict[Any, Any]:
        page = self._unknown.page(offset)
        return {
            self._rows: render.groups(page),
            self._offset: page.offset,
            self._list: gr.Column(visible=True),
            self._detail: gr.Column(visible=False),
            self._group: None,
            self._suggested: None,
            self._card: "",
            self._head: render.head(self._service.about()),
            self._notice: "",
        }

    def _group_all(self) -> dict[Any, Any]:
        said = self._unknown.run()
        return {**self._refresh(0), self._notice: render.notice("good", said)}

    def _pick(self, event: gr.EventData) -> dict[Any, Any]:
        clicked = event._data
        if "offset" in clicked:
            return self._refresh(int(clicked["offset"]))
        return {**self._show(int(clicked["group"])), self._notice: ""}

    # One group

    def _show(self, group_id: int) -> dict[Any, Any]:
        group = self._unknown.group(group_id)
        return {
            self._list: gr.Column(visible=False),
            self._detail: gr.Column(visible=True),
            self._card: render.group(group),
            self._name: group.probably or "",
            self._other: gr.Dropdown(choices=list(self._unknown.others(group_id)), value=None),
            self._refuse: gr.Button(f"Not {group.probably}", visible=group.probably is not None),
            self._group: group.id,
            self._suggested: group.probably_id,
        }

    def _told(self, group_id: int, act: Callable[[], str]) -> dict[Any, Any]:
        said = act()
        return {**self._show(group_id), self._notice: render.notice("good", said)}

    def _split(self, group_id: int, event: gr.EventData) -> dict[Any, Any]:
        face = int(event._data["split"])
        return self._told(group_id, lambda: self._unknown.split(group_id, face))

    def _join(self, group_id: int, other: int | None) -> dict[Any, Any]:
        return self._told(group_id, lambda: self._unknown.merge(group_id, other))

    def _not_them(self, group_id: int, person_id: int | None) -> dict[Any, Any]:
        return self._told(group_id, lambda: self._unknown.refuse(group_id, person_id))

    def _give_name(self, group_id: int, name: str, offset: int) -> dict[Any, Any]:
        said = self._unknown.name(group_id, name)
        return {**self._refresh(offset), self._notice: render.notice("good", said)}

    def _hide(self, group_id: int, offset: int) -> dict[Any, Any]:
        said = self._unknown.dismiss(group_id)
        return {**self._refresh(offset), self._notice: render.notice("good", said)}
