"""What people look at: console, event file, curves, plots."""
