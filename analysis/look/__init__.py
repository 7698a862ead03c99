"""What a trained network does inside, as frames, figures and sentences of one cell."""

FOLDER = "inside"
"""Of a cell, where they are written."""
MANIFEST = "inside.json"
"""There: what was looked at, and the figures in reading order."""
