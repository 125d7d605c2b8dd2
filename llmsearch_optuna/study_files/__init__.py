"""Study files beside their meaning: places in their text, their schema for editors, and a new one to begin with."""
