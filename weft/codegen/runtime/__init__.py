"""Files copied verbatim into emitted packages: torch only, no import of weft."""
