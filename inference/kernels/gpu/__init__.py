"""The kernels' GPU versions, in Triton. Know device memory and tiles; only the modules that say so import triton.

tiles      which rows of a step each program of the segmented-gather GEMM takes; one host-to-device copy
layout     where a step's rows and blocks of cache are, on the device; one host-to-device copy
pinned     that copy
sgmm       launches the GEMM                  (triton)
attention  launches attention and the store   (triton)
kernels/   what runs on the device            (triton)

Nothing here waits for the device. What a launch depends on is sizes only: padded rows, shapes, strides; so a captured
graph serves any assignment of slots, ranks and blocks that fits the sizes.
"""
