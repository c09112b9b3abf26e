"""What training and inference must agree on: tasks, files, token ids, metrics. Nothing in here imports torch."""
