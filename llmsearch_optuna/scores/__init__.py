"""What metrics are made of: scores of texts, the forms in which users bring metrics, and checks of their answers."""
