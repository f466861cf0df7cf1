"""Static block sets as text: one line for each block of queries, naming the blocks of keys it sees; a blank line
between heads. `all` is every block."""


def table(text: str) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """[heads][query blocks] -> key blocks, as `attention.Blocks` wants them."""
    heads = [head.strip().split("\n") for head in text.strip().split("\n\n")]
    every = tuple(range(len(heads[0])))
    return tuple(
        tuple(every if row.strip() == "all" else tuple(map(int, row.replace("none", "").split())) for row in head)
        for head in heads
    )
