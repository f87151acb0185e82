"""What is stated of a model: its manifest, OpenSSF's statement, ours, and where they lie."""
