"""The CPU program's instructions in plain torch, and programs made for it."""
