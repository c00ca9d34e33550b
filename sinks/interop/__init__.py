"""Pretrained Hugging Face models: loaded, read by the suite's statistics, and reported; needs the extra `hf`."""
