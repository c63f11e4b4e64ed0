"""Models: one file per architecture, named by Hugging Face's `model_type`; loading, generation, the command line."""
