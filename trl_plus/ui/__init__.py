"""Terminal and HTML output that all commands share."""
