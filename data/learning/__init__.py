"""What trains: trainers, checkpoints, losses, search. Imports the engine and the ground floor."""
