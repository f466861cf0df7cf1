"""Kernels by the two routes that need no GPU: the interpreter for meaning, ahead-of-time compilation for legality.

dual        interpret and compile the same @triton.jit functions in one process
sanitize    bounds, races, int32 overflow and shuffled programs, while interpreting
bf16shim    exact bf16 in the interpreter (installed by `dual`)
aot         compile for sm_80, sm_90, sm_120: registers, spills, shared memory, tensor-core instructions
mutate      plant faults in a skeleton and count how many the cases of its test find
"""
