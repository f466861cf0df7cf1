"""ONNX files built from the IR's own declarations."""

from weft.codegen.onnx.export import dtypes as dtypes
from weft.codegen.onnx.export import export as export
from weft.codegen.onnx.export import portable as portable
from weft.codegen.onnx.export import run as run
from weft.codegen.onnx.export import semantic as semantic
