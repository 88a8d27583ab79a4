"""What all roles share: messages, configuration, networks, schedules, what people look at."""
