"""How the page looks: fonts of the system, nothing from elsewhere."""

import gradio as gr

FONTS = ["system-ui", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Soft(
    primary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=["ui-monospace", "Consolas", "monospace"],
    spacing_size="sm", radius_size="md", text_size="md",
).set(
    block_title_background_fill="none", block_label_background_fill="none", block_title_padding="0",
    block_title_text_color="*neutral_600", block_label_text_color="*neutral_600", block_title_text_weight="500",
    block_title_text_color_dark="*neutral_300", block_label_text_color_dark="*neutral_300",
    body_background_fill="*neutral_50", block_border_width="1px", block_border_color="*neutral_200",
    block_border_color_dark="*neutral_700", block_shadow="none", input_border_width="1px", input_shadow="none",
)  # fmt: skip

CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto; }
#title h1 { margin: 0; font-size: 1.35rem; font-weight: 650; letter-spacing: -.01em; }
#title p { margin: 0; opacity: .65; }
.stage { display: grid; gap: 10px; }
.stage.one { justify-items: center; }
.stage.one figure { width: min(100%, 512px); }
.stage.many { grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); align-content: start; }
.stage.hint { min-height: 300px; place-items: center; opacity: .55; border-radius: 12px;
  border: 2px dashed var(--border-color-primary); }
.stage.sheet { overflow-x: auto; }
.stage.sheet table { border-collapse: separate; border-spacing: 6px; width: 100%; border: 0; margin: 0; }
.stage.sheet :is(tr, th, td) { border: 0; padding: 0; }
.stage.sheet th { font-weight: 500; font-size: .85rem; text-align: center; }
.stage.sheet td { min-width: 84px; }
.stage figure { margin: 0; position: relative; }
.stage img { width: 100%; display: block; border-radius: 10px; box-shadow: 0 1px 8px rgba(0, 0, 0, .18); }
.stage .pixels img { image-rendering: pixelated; }
.stage .coming img { opacity: .85; }
.stage .blank { aspect-ratio: 1; border-radius: 10px; background: var(--background-fill-secondary);
  display: grid; place-items: center; }
.stage figcaption { padding: 1rem; text-align: center; font-size: .9rem; opacity: .8; }
.progress { position: relative; height: 26px; margin-top: 10px; border-radius: 8px; overflow: hidden;
  background: var(--background-fill-secondary); }
.progress div { position: absolute; inset: 0 auto 0 0; background: var(--color-accent-soft); transition: width .25s; }
.progress span { position: relative; display: block; text-align: center; line-height: 26px; font-size: .85rem; }
#gallery .grid-wrap { min-height: 0; height: auto; max-height: 26rem; padding-top: 1.6rem; }
#gallery .gallery-container { height: auto; }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); }
footer { display: none !important; }
"""
