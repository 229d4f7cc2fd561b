"""The look of Gradio's own components: the colours of static/chat.css, so that all of the page is one."""

from __future__ import annotations

import inspect
from typing import Any

from gradio.themes import Base

_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "sans-serif"]
_MONO = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]

# Gradio's name → our variable. Each is set for light and dark alike: the variables themselves change.
_COLOURS = {
    "body_background_fill": "back",
    "body_text_color": "text",
    "body_text_color_subdued": "quiet",
    "background_fill_primary": "back",
    "background_fill_secondary": "side",
    "border_color_primary": "line",
    "border_color_accent": "accent",
    "color_accent": "accent",
    "color_accent_soft": "accent-soft",
    "link_text_color": "accent",
    "block_background_fill": "back",
    "block_border_color": "line",
    "block_info_text_color": "quiet",
    "block_label_text_color": "quiet",
    "block_title_text_color": "text",
    "input_background_fill": "soft",
    "input_border_color": "line",
    "input_border_color_focus": "accent",
    "input_placeholder_color": "quiet",
    "slider_color": "accent",
    "checkbox_background_color": "back",
    "checkbox_background_color_selected": "accent",
    "checkbox_border_color": "quiet",
    "checkbox_border_color_selected": "accent",
    "button_primary_background_fill": "accent",
    "button_primary_background_fill_hover": "accent",
    "button_primary_text_color": "on-accent",
    "button_secondary_background_fill": "soft",
    "button_secondary_background_fill_hover": "hover",
    "button_secondary_text_color": "text",
    "panel_background_fill": "back",
    "panel_border_color": "line",
}
_SIZES = {
    "block_radius": "13px",
    "container_radius": "13px",
    "input_radius": "9px",
    "button_large_radius": "10px",
    "button_large_padding": "7px 16px",
    "button_large_text_size": "15px",
    "block_title_text_weight": "600",
    "block_info_text_size": "13px",
    "block_padding": "11px 14px",
    "input_border_width": "0px",
    "block_shadow": "none",
}


def theme() -> Base:
    """For gr.mount_gradio_app."""
    values: dict[str, Any] = dict(_SIZES)
    settable = inspect.signature(Base.set).parameters
    for name, colour in _COLOURS.items():
        for key in (name, f"{name}_dark"):
            if key in settable:
                values[key] = f"var(--tl-{colour})"
    return Base(primary_hue="indigo", neutral_hue="zinc", font=_FONTS, font_mono=_MONO).set(**values)
