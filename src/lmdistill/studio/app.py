"""The page as a whole: six tabs over one folder of runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from lmdistill.studio import page, tabs
from lmdistill.studio.data import RowFiles
from lmdistill.studio.live import LiveRuns
from lmdistill.studio.runs import find_runs
from lmdistill.studio.shelf import Choice, Shelf, choices_of

_STYLE = Path(__file__).parent / "style.css"
_NO_DOCS: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}


@dataclass
class Studio:
    """What all visitors of one studio share."""

    root: Path
    live: LiveRuns = field(default_factory=LiveRuns)
    shelf: Shelf = field(default_factory=Shelf)
    files: RowFiles = field(default_factory=RowFiles)

    def runs(self) -> dict[str, Path]:
        """The run folders by name, the newest first."""
        return find_runs(self.root)

    def models(self) -> dict[str, Choice]:
        """The models of all runs by label."""
        return choices_of(self.runs())


def build(root: Path) -> gr.Blocks:
    """The page over a folder of runs."""
    studio = Studio(root)
    with gr.Blocks(title="lmdistill studio", analytics_enabled=False, fill_width=True) as blocks:
        head = page.whole(page.heading("lmdistill studio", 1), page.note(f"Runs in {root.resolve()}"))
        gr.HTML(head, js_on_load=None, apply_default_css=False)
        with gr.Tabs(overflow_behavior="wrap"):
            for name, make in tabs.TABS.items():
                with gr.Tab(name) as tab:
                    tabs.connect(make(studio), tab, blocks, first=name == "Runs")
    return blocks


def theme() -> gr.themes.Base:
    """Gradio's own look with the system's fonts, so that none is loaded."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Default(
        primary_hue="blue", font=fonts, font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_700",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_400",
    )


def application(root: Path) -> FastAPI:
    """The studio as an ASGI application, without the pages that describe an API."""
    blocks = build(root)
    blocks.queue(max_size=64)
    outer = FastAPI(**_NO_DOCS)
    mounted: FastAPI = gr.mount_gradio_app(
        outer,
        blocks,
        path="/",
        server_name="127.0.0.1",
        footer_links=[],
        run_history=False,
        app_kwargs=dict(_NO_DOCS),
        allowed_paths=[],
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=_STYLE.read_text(encoding="utf-8"),
    )
    return mounted
