"""The engine's own kernels. Know tensors, slots and blocks; never adapters' digests, sequences or models.

sgmm       segmented-gather GEMM: every row of a batch with its own LoRA pair
attention  paged attention over a block-pool KV cache
reference  both in plain torch: the slow twins, and what runs where there is no kernel
gpu        the same kernels in Triton, for CUDA; imported only there
build      compiles cpu/*.cpp into one library with a plain C ABI (`python -m inference.kernels.build`)
library    loads that library; `None` where it cannot be had
"""
