"""What every stage must agree on, in four rooms. An import goes down, never up:

learning/   what trains: trainers, checkpoints, losses          report/   what people look at: cards, charts
    |                                                              |
engine/     what computes: models, packing, predictions            |
    |                                                              |
*.py        the ground floor: tasks, files, token ids, metrics. Nothing here imports torch.

The stages (main_SFT.py, main_grpo.py, ...) stand above all of it. `tests/test_rooms.py` holds the house to this.
"""
