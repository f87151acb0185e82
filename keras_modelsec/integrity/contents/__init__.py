"""What is in a model file (ZIP, HDF5, configuration, leaves), and what loading may trust of it."""
