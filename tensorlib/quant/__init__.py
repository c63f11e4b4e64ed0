"""GGML-quantised weights: `formats` (one row per type), `decode` (NumPy reference), `source`, `tensor` (QTensor)."""
