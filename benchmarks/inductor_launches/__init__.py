"""How many kernels one denoising step launches after torch.compile for CUDA, counted without a GPU.

    network ─ make_fx ─► aten graph ─ Inductor's own lowering ─► its program for an H100 ─► count

Fake tensors stand for CUDA ones and the driver is pretended (pretended_cuda.py), so nothing runs:
what is counted are the calls in the program that Inductor would execute. A library call (a
convolution, a product, an attention) counts as one launch, though cuDNN may make more of it.

Run: python -m benchmarks.inductor_launches [--batch 16]     about a minute on one core
Writes benchmarks/results/inductor_launches.json.
"""
