"""What is learned of a batch: one file for each `agent.algorithm`."""
