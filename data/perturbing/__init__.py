"""Changes of texts that leave what they say as it is, for `scripts/robustness.py`. (no torch)"""
