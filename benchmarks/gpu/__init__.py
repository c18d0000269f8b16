"""Everything that only a GPU can tell, in one command and one JSON file.

    correctness   every kernel and engine against the reference; hashes of the bit-exact parts
    ceilings      what this device's memory and arithmetic can do at most
    kernels       each kernel's bytes per second, and its share of the measured bandwidth
    convolutions  conv3x3 beside cuDNN, layer by layer
    throughput    Ho's CIFAR-10 net with random weights against diffusers, eager and compiled:
                  ms a step, images a second, launches, memory, shares of the ceilings

Run: python -m benchmarks.gpu [--quick] [--parts ceilings,kernels] [--batch 16,256]
Writes benchmarks/results/gpu_<device>.json. Each part runs in a process of its own, so one that
fails leaves the others alone, and what it had found until then is kept.
"""
