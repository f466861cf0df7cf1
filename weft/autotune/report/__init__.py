"""What a tuning comes to, for people, while it runs and when it is done."""
