"""Loading models and tokenizers, quantized checkpoints included.

Nothing is imported here: texts are tokenized in many places, and what loads a model imports all of transformers.
"""
