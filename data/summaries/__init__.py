"""Counselling cases and the summaries of them: reading, the task, scores, judges. (no torch)"""
