"""Products of matrices with maps in front and behind."""
