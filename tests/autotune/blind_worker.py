"""A compile worker on a Triton whose stages are not known."""

from weft.autotune import compile_worker, serve, staging

staging.KNOWN = ()

if __name__ == "__main__":
    compile_worker.versions()
    serve.serve(compile_worker.handle)
