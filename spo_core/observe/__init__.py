"""What people read: trackers, progress, tables, the page. Not here: anything that a result depends on."""
