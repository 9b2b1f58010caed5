"""What things do, room by room; docs/architecture.md lists the rooms. Not here: Prefect, and when things run."""
