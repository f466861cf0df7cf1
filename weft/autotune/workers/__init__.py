"""Processes that may be killed, what they are sent, and what they run: compilers, hosts and benches."""
