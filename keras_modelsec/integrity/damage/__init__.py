"""What is different, where, and by how much."""
