"""A view as one HTML file that needs nothing else: no network, no script but its own, light and dark.

It works from disk, in a notebook cell and in a sandboxed frame. The page holds the payload as JSON, the style sheet
`page.css` and the drawing code `page.js` and `plots.js` as they stand here; a content security policy forbids everything else.
"""

import functools
import html
import importlib.resources
import json
from typing import Any

from jaxinterp.views.colours import FAINT, INK, PAPER, SCALES, SERIES, Theme
from jaxinterp.views.payload import TOKEN_AXES, View
from jaxinterp.views.tokens import visible

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
CELL_HEIGHT = {"table": 360, "line": 440, "heatmap": 760, "attention": 640, "highlight": 320, "scatter": 600, "report": 900}

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="generator" content="jaxinterp">
<title>{title}</title>
<style>
{colours}
{css}</style>
</head>
<body class="{place}">
<main id="page">
<header><h1>{title}</h1><button id="theme" type="button">dark</button></header>
<noscript><p>This picture is drawn by the script inside this file; it fetches nothing. Allow scripts to see it.</p></noscript>
</main>
<script type="application/json" id="view">{data}</script>
<script>
{js}</script>
</body>
</html>
"""


def page(view: View, *, place: str = "page") -> str:
    """The view as the text of a self-contained HTML file; `place` is "page" or "cell" (tighter margins)."""
    palette = {"scales": SCALES, "series": SERIES}
    return TEMPLATE.format(
        policy=html.escape(POLICY, quote=True),
        title=html.escape(view.title or "jaxinterp"),
        colours=_colours(),
        css=_asset("page.css"),
        place=place,
        data=embed_json({"view": _shown(view), "palette": palette}),
        js=_asset("page.js") + _asset("plots.js"),
    )


def notebook_cell(view: View) -> str:
    """The view as a sandboxed frame for a notebook: it can run its own script and reach nothing outside."""
    source = html.escape(page(view, place="cell"), quote=True)
    return f'<iframe srcdoc="{source}" sandbox="allow-scripts" style="width: 100%; height: {CELL_HEIGHT[view.kind]}px; border: 0"></iframe>'


def embed_json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or open another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _shown(view: View) -> dict[str, Any]:
    """The payload with its token strings made visible under "shown": what the page prints."""
    return _with_shown(json.loads(view.to_json()))


def _with_shown(data: dict[str, Any]) -> dict[str, Any]:
    token_columns = {column["name"] for column in data.get("options", {}).get("columns", ()) if column["kind"] == "token"}
    labels = data.get("labels", {})
    are_tokens = token_columns | set(TOKEN_AXES) | ({"texts"} if data["kind"] == "heatmap" else set())
    data["shown"] = {name: list(map(visible, strings)) if name in are_tokens else strings for name, strings in labels.items()}
    if data.get("tokens"):
        data["shown"]["tokens"] = [visible(token) for token in data["tokens"]]
    for section in data.get("sections", ()):
        section["views"] = [_with_shown(inner) for inner in section["views"]]
    return data


def _colours() -> str:
    """The custom properties of the style sheet, for both themes and for a theme chosen by hand."""

    def block(theme: Theme) -> str:
        line = {"light": "#e4e7ec", "dark": "#30343d"}[theme]
        named = {"paper": PAPER[theme], "ink": INK[theme], "faint": FAINT[theme], "line": line}
        named |= {"accent": SERIES[theme][0], "mark": SERIES[theme][1]}
        named |= {f"series-{i}": colour for i, colour in enumerate(SERIES[theme])}
        return " ".join(f"--{name}: {colour};" for name, colour in named.items())

    return (
        f":root {{ {block('light')} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {block('dark')} }} }}\n"
        f":root[data-theme=light] {{ {block('light')} color-scheme: light; }}\n"
        f":root[data-theme=dark] {{ {block('dark')} color-scheme: dark; }}"
    )


@functools.cache
def _asset(name: str) -> str:
    return importlib.resources.files("jaxinterp.views").joinpath(name).read_text(encoding="utf-8")
