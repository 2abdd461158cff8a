// Compiled once for each ISA, with that ISA's flags and LORAYARD_ISA its name: the kernels in a namespace of their own.
#include "attention.h"
#include "linear.h"
#include "pointwise.h"

#define QUOTE(name) QUOTED(name)
#define QUOTED(name) #name

namespace LORAYARD_ISA {
extern const Kernels kernels;
const Kernels kernels = {QUOTE(LORAYARD_ISA), P, sgmm, linear, attend, rms_norm, gated, rotate};
}  // namespace LORAYARD_ISA
