"""What the papers claim, measured: the bound in bits per dimension, rate against distortion, and
the distance of samples from data."""
