"""hwnas: hardware-aware shrinking of Hugging Face models, measured on the device that serves them."""

__version__ = "0.1.0"
