"""What all roles share: messages, configuration, networks, schedules."""
