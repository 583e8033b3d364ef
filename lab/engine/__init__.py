"""Stand-ins for the engine's plugins that the lab uses where the real ones cannot be downloaded.

Each stand-in speaks the engine's own protocol and does the real work; the ways of the real plugins that a program must
be right with (create before delete, "already exists" counts as success, ...) are kept on purpose.
"""
