"""The process that learns: loss, optimiser, prefetch, checkpoint, weights to the actors."""
