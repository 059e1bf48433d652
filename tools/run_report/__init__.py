"""The parts of tools/report.py: figures of a run, charts as SVG, sections of the page."""
