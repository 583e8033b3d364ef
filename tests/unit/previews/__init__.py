"""Event logs of real previews, and what shortens them."""
