"""The student in PyTorch: the M-MATE block, its place inside transformers, conversion of a teacher."""
