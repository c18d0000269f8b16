"""Other people's models: recognised, converted to the same network here, and run by an engine."""

from fastddpm.integrations.accelerate import accelerate
from fastddpm.integrations.accelerated import Accelerated

__all__ = ["Accelerated", "accelerate"]
