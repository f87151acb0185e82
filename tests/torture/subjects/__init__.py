"""What is damaged and what must come of it; `catalogue` has all of it."""
