"""One run, or two side by side, as a page."""
