"""Flags by which XLA compiles for a CPU in half the time: most of these tests is compiling."""

import jaxlib.version

# Fewer parts cost less than many.
QUICK = "--xla_cpu_parallel_codegen_split_count=1"
# The older code generator, which jaxlib 0.11 has no longer.
if jaxlib.version.__version_info__ < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
