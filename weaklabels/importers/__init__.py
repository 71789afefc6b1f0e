"""Points drawn in other tools."""
