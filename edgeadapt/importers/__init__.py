"""Other people's model files, turned into Hugging Face folders."""
