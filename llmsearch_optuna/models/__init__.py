"""Loading models and tokenizers, quantized checkpoints included."""
