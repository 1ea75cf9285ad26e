"""Training a student to answer like its teacher."""
