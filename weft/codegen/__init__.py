"""From a program to a package on disk: `build` goes the whole way.

In reading order: `plan/` (everything decided, and its views), `torch/` (graphs as torch source), `skeletons/` (kernels,
and what fills their holes), `package/` (the files), `measure/` (what they launch, move and hold), `check/` (whether
they are right), `onnx/`, and `runtime/`, whose files are copied into packages."""
