"""What computes: models, packed rows, predictions. Imports the ground floor only."""
