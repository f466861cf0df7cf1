"""The files of a package, as text and on disk: blocks, the kernel path, the model, decoding, the manifest."""
