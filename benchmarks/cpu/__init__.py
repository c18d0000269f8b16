"""The CPU engine beside its rivals: torch, ONNX Runtime, OpenVINO and MNN.

All run the same network with the same weights on the same inputs, at the same thread count, and
each at its best setting; nothing is timed before its output agrees with float64.
"""
