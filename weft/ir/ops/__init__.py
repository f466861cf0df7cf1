"""What an op declares, and the ops that are not made of others."""
