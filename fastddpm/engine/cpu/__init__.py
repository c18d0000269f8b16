"""Parts of the CPU engine (engine/cpu_program.py): from a step to a native program."""
