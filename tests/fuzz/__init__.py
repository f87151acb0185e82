"""Coverage-guided fuzzing of every parser that reads untrusted bytes (`make fuzz`)."""
