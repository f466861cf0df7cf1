"""The intermediate representation: immutable graphs of ops over named dims. Imports no torch."""
