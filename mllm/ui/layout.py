"""Layout of the page in Gradio."""

from __future__ import annotations

from html import escape

import gradio as gr

from mllm.ui.events import AS_STORED, NO_AXIS, Events
from mllm.ui.rendering import chosen_html
from mllm.ui.reports import runs_with_reports
from mllm.ui.study import AXES

LENGTH = 128
"""Default of the maximum number of tokens of an answer."""
ASKING = 32
"""Number of persons whose questions are in the queue of the server; Gradio's other 8 threads are for their views."""
ABOUT = "For research only; not for clinical use. Nothing is stored unless a correction is kept."


class Layout:
    """Components of the page, connected to its events."""

    def __init__(self, events: Events) -> None:
        self.events = events
        names = events.asker.names
        with gr.Blocks(title="mllm", analytics_enabled=False, fill_width=True) as self.blocks:
            gr.HTML(f"<h1>mllm</h1><p>{escape(', '.join(names))}</p><p>{ABOUT}</p>", elem_id="head")
            with gr.Tab("Ask"), gr.Row():
                with gr.Column(min_width=300):
                    self._add_viewer()
                with gr.Column(min_width=300):
                    self._add_models(names)
                    if events.views:
                        self._add_measuring()
                    else:
                        self._add_questions()
            with gr.Tab("Reports"):
                self._add_reports()
            self._connect_viewer()
            if events.views:
                self._connect_measuring()
            else:
                self._connect_questions()
            self.show.click(events.show_report, self.run, self.report, api_visibility="private")
            self.blocks.unload(events.leave)

    def _add_viewer(self) -> None:
        """Add the drop area, the picture, and the controls of its view."""
        self.files = gr.File(file_count="multiple", label="Image, video, DICOM or folder", height=150, elem_id="files")
        self.folder = gr.UploadButton(
            "Open a folder with a DICOM series", file_count="directory", size="sm", elem_id="folder"
        )
        self.picture = gr.HTML(elem_id="picture")
        self.index = gr.Slider(1, 2, 1, step=1, buttons=[], label="Slice", visible=False, elem_id="index")
        with gr.Row():
            self.axis = gr.Dropdown([NO_AXIS, *AXES], label="Plane", visible=False, min_width=140)
            self.window = gr.Dropdown([AS_STORED], label="Window", visible=False, min_width=140, elem_id="window")
        with gr.Row():
            self.center = gr.Slider(0, 1, 0, buttons=[], label="Center", visible=False, min_width=140, elem_id="center")
            self.width = gr.Slider(0, 1, 1, buttons=[], label="Width", visible=False, min_width=140, elem_id="width")

    def _add_models(self, names: list[str]) -> None:
        """Add the choice of models, the conversation and the message."""
        self.models = gr.CheckboxGroup(names, value=names[:2], label="Models", visible=len(names) > 1, elem_id="models")
        self.talk = gr.HTML(elem_id="conversation")
        self.writing = gr.HTML(elem_id="writing")
        self.message = gr.HTML(elem_id="message")

    def _add_measuring(self) -> None:
        """Add the choice of a picture for each view of a model of measures."""
        views = list(self.events.views)
        self.view = gr.Radio(views, value=views[0], label="View that the picture shows", elem_id="view")
        self.take = gr.Button("Use the picture for this view", elem_id="take")
        self.chosen = gr.HTML(chosen_html([(name, None) for name in views]), elem_id="chosen")
        self.measure = gr.Button("Measure", variant="primary", elem_id="ask")

    def _add_questions(self) -> None:
        """Add the field of the question, the correction, and the options."""
        self.question = gr.Textbox(
            "", label="Question", lines=2, placeholder="Is there a pleural effusion?", elem_id="question"
        )
        with gr.Row(equal_height=True):
            self.send = gr.Button("Ask", variant="primary", min_width=120, elem_id="ask")
            self.stop = gr.Button("Stop", variant="stop", min_width=120, elem_id="stop", visible=False)
            self.new = gr.Button("New conversation", min_width=120, elem_id="new")
        with gr.Accordion("Correct the last answer", open=False, elem_id="correct"):
            self.right = gr.Textbox("", label="Right answer", lines=2, elem_id="right")
            self.patient = gr.Textbox(
                "",
                label="Patient (optional)",
                info="A pseudonym, by which training and test are separated.",
                elem_id="patient",
            )
            self.keep = gr.Button("Keep the question with this answer", elem_id="keep")
            self.kept = gr.HTML(elem_id="kept")
        with gr.Accordion("Options", open=False):
            longest = self.events.limits.tokens
            self.length = gr.Slider(
                1,
                max(longest, 2),
                min(LENGTH, longest),
                step=1,
                buttons=[],
                label="Maximum length of an answer, in tokens",
            )
            self.modality = gr.Textbox(
                "", label="Modality", info="Text before the question, if the model was trained with it."
            )

    def _add_reports(self) -> None:
        """Add the choice of a run and its report."""
        self.run = gr.Dropdown(
            runs_with_reports(),
            label="Run",
            allow_custom_value=True,
            info="Select a run, or write its folder.",
            elem_id="run",
        )
        self.show = gr.Button("Show the report", elem_id="show")
        self.report = gr.HTML(elem_id="report")

    def _connect_viewer(self) -> None:
        """Connect the events of the drop area and of the controls of the view. No event is an endpoint for clients."""
        on = self.events
        view = [self.picture, self.index, self.axis, self.window, self.center, self.width]
        talk = [self.talk, self.message]
        own = [self.center, self.width]
        opened = [
            self.files.upload(on.open, self.files, [*view, *talk], api_visibility="private"),
            self.folder.upload(on.open_folder, self.folder, [self.files, *view, *talk], api_visibility="private"),
        ]
        for cleared in (self.files.clear, self.files.delete):
            opened.append(cleared(on.close, None, [self.files, *view, *talk], api_visibility="private"))
        if on.views:
            for dropped in opened:
                dropped.then(on.show_chosen, None, [self.chosen, self.view], api_visibility="private")
        for moved, event, inputs in (
            (self.index, on.choose, [self.index]),
            (self.center, on.own_window, own),
            (self.width, on.own_window, own),
        ):
            moved.input(
                event,
                inputs,
                [self.picture, self.message],
                trigger_mode="always_last",
                show_progress="hidden",
                api_visibility="private",
            )
        for chosen, change in ((self.axis, on.turn), (self.window, on.choose_window)):
            chosen.input(change, chosen, [*view, self.message], show_progress="hidden", api_visibility="private")

    def _connect_measuring(self) -> None:
        """Connect the events of a model of measures."""
        on = self.events
        self.take.click(on.take, self.view, [self.chosen, self.view, self.message], api_visibility="private")
        self.measure.click(on.measure, None, [self.talk, self.message], api_visibility="private")

    def _connect_questions(self) -> None:
        """Connect the events of questions and corrections."""
        on, talk = self.events, [self.talk, self.message]
        asked = [self.question, self.models, self.length, self.modality]
        changing = [self.talk, self.writing, self.message, self.question, self.kept, self.send, self.stop]
        for sent in (self.send.click, self.question.submit):
            sent(
                on.ask,
                asked,
                changing,
                show_progress="hidden",
                concurrency_limit=ASKING,
                concurrency_id="ask",
                api_visibility="private",
            )
        self.stop.click(on.stop, None, None, show_progress="hidden", api_visibility="private")
        for restarted in (self.new.click, self.models.input):
            restarted(on.restart, None, [*talk, self.kept], show_progress="hidden", api_visibility="private")
        corrected = [self.right, self.patient]
        self.keep.click(on.keep, corrected, [self.kept, self.right], api_visibility="private")
