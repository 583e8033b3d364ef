"""The ``school`` command: what a teacher does with a running cluster."""
