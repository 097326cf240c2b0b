"""Pictures of results: a payload (`View`) and three renderers that read it, terminal, PNG and HTML."""

from jaxinterp.views.payload import Section, View, attention, heatmap, highlight, line, report, scatter, table

__all__ = ["Section", "View", "attention", "heatmap", "highlight", "line", "report", "scatter", "table"]
