"""Block-sparse exact attention: one class for each layout, all with forward and backward (see attention_layouts)."""

from .attention_blocks import Blocks as Blocks
from .attention_blocks import Listed as Listed
from .attention_core import sunk as sunk
from .attention_drop import Dropping as Dropping
from .attention_layouts import Band as Band
from .attention_layouts import Causal as Causal
from .attention_layouts import Cols as Cols
from .attention_layouts import Columns as Columns
from .attention_layouts import Dense as Dense
from .attention_layouts import Diagonal as Diagonal
from .attention_layouts import Layout as Layout
from .attention_layouts import Rectangle as Rectangle
from .attention_layouts import Residues as Residues
from .attention_layouts import Rows as Rows
from .attention_layouts import Strict as Strict
from .attention_layouts import Window as Window
from .attention_merge import Merge as Merge
from .attention_merge import PerHead as PerHead
from .attention_parts import Corner as Corner
from .attention_parts import Tail as Tail
from .attention_tiles import Near as Near
from .attention_tiles import Scored as Scored
from .attention_tiles import Tiles as Tiles
from .attention_tiles import at as at
