"""What the writers of all families share: a region's file, its holes, its iteration space."""
