"""What printed functions move, launch and hold, measured on torch's meta device: nothing is computed."""
