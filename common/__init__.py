"""What every role shares: messages, configuration, networks and targets, schedules, what people look at."""
