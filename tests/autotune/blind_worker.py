"""A compile worker on a Triton whose stages are not known."""

from weft.autotune.workers import compile, serve, staging

staging.KNOWN = ()

if __name__ == "__main__":
    compile.versions()
    serve.serve(compile.handle)
