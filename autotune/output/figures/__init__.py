"""Figures of a study, drawn with Plotly."""
