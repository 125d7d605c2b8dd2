"""The bundled model and dialogues of the demo."""
