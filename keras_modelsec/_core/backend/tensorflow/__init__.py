"""The only folder of the package that imports TensorFlow; a file a subject."""
